"""Single values of a recipe: which keys there are, what each accepts, and texts that stand for values."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import inspect

from ratfast.config.schema import Recipe
from ratfast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(Recipe)
}
_FIELDS = {
    f"{section}.{field.name}": field
    for section, struct in SECTIONS.items()
    for field in msgspec.structs.fields(struct)
}
_PATTERNS = {
    "train.device": "auto, cpu, cuda or cuda:N",
    "output.store": "a URL such as s3://bucket/folder or file:///folder",
}
"""What keys accept whose texts have a pattern, in words."""
_MAX_SHOWN = 60


def key_names() -> tuple[str, ...]:
    """All keys as `section.key`, in the schema's order."""
    return tuple(_FIELDS)


def default(key: str) -> Any:
    """The default of a key; None if it is unset."""
    return _FIELDS[key].default


def check(key: str, value: Any, shown: str | None = None) -> Any:
    """A value as the schema's type for its key.

    Args:
        key: `section.key`.
        value: as read from TOML or given in Python.
        shown: what an error calls the key; the key itself by default.

    Raises:
        InputError: there is no such key, or the value is of another type or out of range.
    """
    field = _field(key, shown)
    try:
        checked = msgspec.convert(value, field.type, strict=True)
        for text in checked if isinstance(checked, tuple) else (checked,):
            if isinstance(text, float) and not math.isfinite(text):
                raise ValueError
            if isinstance(text, str):
                if "\0" in text:
                    raise ValueError
                text.encode()
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise InputError(
            f"{shown or key} is {_show(value)}, expected {expected(key)}{_nearest_choice(key, value)}"
        ) from None
    return checked


def parse_text(key: str, text: str, shown: str | None = None) -> Any:
    """The value that a text on the command line stands for: TOML, or a bare string, or bare strings A,B,C.

    Args:
        key: `section.key`.
        text: what stands after the `=`.
        shown: what an error calls the key; the key itself by default.

    Raises:
        InputError: there is no such key, or no reading of the text suits it.
    """
    field = _field(key, shown)
    value = _toml_value(text)
    candidates = [value]
    if _accepts_list(field.type) and not isinstance(value, list | dict):
        candidates = [[part.strip() for part in text.split(",") if part.strip()]]
    elif value != text and not (isinstance(value, int) and _accepts_int(field.type)):
        # Where a name happens to be a TOML number or date, it is still a name.
        candidates.append(text)
    for candidate in candidates:
        try:
            return check(key, candidate, shown)
        except InputError:
            continue
    return check(key, candidates[0], shown)


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `section.key=value`.

    Raises:
        InputError: it has no `=`, there is no such key, or the value does not suit it.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if f"{key}.name" in _FIELDS:
        key += ".name"
    if not equals:
        raise InputError(f"--set {override!r} has no value, expected section.key=value")
    return key, parse_text(key, text.strip(), f"--set {key}")


def flatten(sections: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Checked values by dotted key, of values by section and key.

    Raises:
        InputError: a section, a key or a value is not usable; the sentence begins with `source`.
    """
    prefix = f"{source}: " if source else ""
    values = {}
    for section, fields in sections.items():
        if f"{section}.name" in _FIELDS and isinstance(fields, str):
            fields = {"name": fields}
        if section not in SECTIONS and not isinstance(fields, Mapping):
            _field(str(section), prefix + str(section))
        if section not in SECTIONS:
            hint = _nearest(str(section), SECTIONS)
            raise InputError(
                f"{prefix}there is no section [{section}], expected one of {', '.join(SECTIONS)}{hint}"
            )
        if not isinstance(fields, Mapping):
            raise InputError(f"{prefix}{section} is {_show(fields)}, expected a section [{section}] of keys")
        for name, value in fields.items():
            key = f"{section}.{name}"
            values[key] = check(key, value, prefix + key)
    return values


@cache
def expected(key: str) -> str:
    """What a key accepts, in words, such as "an integer of at least 1"."""
    if key in _PATTERNS:
        return _PATTERNS[key]
    annotation = _FIELDS[key].type
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(get_args(annotation))}"
    return _words(inspect.type_info(annotation))


def _field(key: str, shown: str | None) -> msgspec.structs.FieldInfo:
    if key in _FIELDS:
        return _FIELDS[key]
    same_name = [known for known in _FIELDS if known.partition(".")[2] == key.rpartition(".")[2]]
    hint = f"; did you mean {same_name[0]!r}?" if same_name else _nearest(key, _FIELDS)
    if not hint:
        by_name = {known.partition(".")[2]: known for known in _FIELDS}
        nearest = difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1)
        hint = f"; did you mean {by_name[nearest[0]]!r}?" if nearest else ""
    raise InputError(f"{shown or key} is not a key of a recipe{hint or ', expected section.key'}")


def _nearest(name: str, names: Any) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _nearest_choice(key: str, value: Any) -> str:
    if get_origin(_FIELDS[key].type) is Literal and isinstance(value, str):
        return _nearest(value, get_args(_FIELDS[key].type))
    return ""


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _accepts_list(annotation: Any) -> bool:
    return isinstance(inspect.type_info(annotation), inspect.VarTupleType)


def _accepts_int(annotation: Any) -> bool:
    info = inspect.type_info(annotation)
    return any(isinstance(option, inspect.IntType) for option in getattr(info, "types", (info,)))


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # A line break in the text could have added other keys.
    return parsed["value"] if parsed.keys() == {"value"} else text


def _words(info: inspect.Type) -> str:
    if isinstance(info, inspect.UnionType):
        options = [_words(option) for option in info.types if not isinstance(option, inspect.NoneType)]
        return " or ".join(options)
    if isinstance(info, inspect.LiteralType):
        return f"one of {', '.join(info.values)}"
    if isinstance(info, inspect.VarTupleType):
        words = _words(info.item_type)
        return (
            "a list of strings"
            if words == "a non-empty string"
            else f"a list of {words.removeprefix('one of ')}"
        )
    if isinstance(info, inspect.IntType | inspect.FloatType):
        kind = "an integer" if isinstance(info, inspect.IntType) else "a number"
        bounds = [
            f"{words} {bound}"
            for words, bound in (
                ("of at least", info.ge),
                ("above", info.gt),
                ("at most", info.le),
                ("below", info.lt),
            )
            if bound is not None
        ]
        return f"{kind} {' and '.join(bounds)}"
    return "a non-empty string"
