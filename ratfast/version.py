"""The version, in the one place that packaging, `ratfast info` and the metadata of averages read it from."""

__version__ = "0.1.0"
