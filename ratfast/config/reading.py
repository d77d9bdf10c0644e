"""Recipes from TOML files, plain values and overrides, and how two of them differ."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ratfast import catalogue
from ratfast.config.schema import Recipe
from ratfast.config.values import SECTIONS, check, flatten, key_names, parse_override
from ratfast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load(path: str | PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe from a TOML file.

    Args:
        path: the file.
        overrides: `section.key=value` each, applied in order.

    Raises:
        InputError: the file or an override is not usable.
    """
    values = read_toml(path)
    for override in overrides:
        values.update([parse_override(override)])
    return from_values(values, source=str(path))


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """The values in a TOML file, checked one by one, by dotted key.

    Raises:
        InputError: the file cannot be read or is not TOML, or a section, a key or a value is not usable.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the recipe {path} is not a TOML file: it is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the recipe {path} cannot be read: {reason}") from error
    return parse_toml(text, str(path))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The values in the text of a TOML file, as `read_toml` gives them.

    Args:
        text: of the file.
        source: what an error calls it.

    Raises:
        InputError: it is not TOML, or a section, a key or a value is not usable.
    """
    try:
        sections = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the recipe {source} is not a TOML file: {error}") from error
    return flatten(sections, source)


def from_dict(sections: Mapping[str, Mapping[str, Any]], source: str = "") -> Recipe:
    """The recipe of plain values by section and key, as `Recipe.to_dict` gives them.

    Args:
        sections: values by section and key; what is absent gets its default.
        source: what an error begins with, such as a file's name.

    Raises:
        InputError: a section, a key or a value is not usable.
    """
    return from_values(flatten(sections, source), source=source)


def from_values(values: Mapping[str, Any], source: str = "") -> Recipe:
    """The recipe of values by dotted key (`section.key`), with defaults for the rest.

    Args:
        values: by dotted key; None leaves the default.
        source: what an error begins with, such as a file's name.

    Raises:
        InputError: a key or a value is not usable, or values contradict each other.
    """
    prefix = f"{source}: " if source else ""
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        if value is not None:
            checked = check(key, value, prefix + key)
            section, name = key.split(".")
            sections[section][name] = _with_canonical_names(key, checked)
    try:
        return Recipe(**{name: SECTIONS[name](**fields) for name, fields in sections.items()})
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def _with_canonical_names(key: str, value: Any) -> Any:
    """Data sets by the names that seed their runs: `office_home` and `OfficeHome` are the same recipe."""
    if key == "data.target":
        return catalogue.canonical_name(value)
    if key == "data.aux":
        return tuple(catalogue.canonical_name(name) for name in value)
    return value


def validated(recipe: Recipe) -> Recipe:
    """The recipe itself, once all its values have been checked: one made in Python has not been.

    Raises:
        InputError: a value is not usable, or values contradict each other.
    """
    return from_dict(recipe.to_dict())


def differences(left: Recipe, right: Recipe) -> list[str]:
    """The keys (`section.key`) whose values differ, in the schema's order."""
    return [key for key in key_names() if _get(left, key) != _get(right, key)]


def _get(recipe: Recipe, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)
