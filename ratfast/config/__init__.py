"""The recipe of a training: typed sections, TOML files, overrides, errors naming the key. Free of torch."""

from ratfast.config.reading import (
    differences,
    from_dict,
    from_values,
    load,
    parse_toml,
    read_toml,
    validated,
)
from ratfast.config.schema import Data, HParams, Model, Output, Protocol, Recipe, Train, demo_recipe
from ratfast.config.values import default, key_names, parse_override, parse_text

__all__ = [
    "Data",
    "HParams",
    "Model",
    "Output",
    "Protocol",
    "Recipe",
    "Train",
    "default",
    "demo_recipe",
    "differences",
    "from_dict",
    "from_values",
    "key_names",
    "load",
    "parse_override",
    "parse_text",
    "parse_toml",
    "read_toml",
    "validated",
]
