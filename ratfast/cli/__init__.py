"""The command line: `ratfast` and `ratfast-train`."""
