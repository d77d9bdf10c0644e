"""How every command of the command line behaves alike."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of click for a command or group."""

RESUMABLE = "ratfast.resumable"
"""Key of a click context's `meta`: the same command again continues where this one stopped."""
