"""Reading merge configurations in mergekit's YAML format: which method, which checkpoints, which options. No torch.

Our own reading of the documented format (README and docs/merge_methods.md of arcee-ai/mergekit):

    merge_method: ties
    base_model: base.safetensors
    models:
      - model: one.safetensors
        parameters: {weight: 0.7, density: 0.5}
      - model: folder_of_another
        parameters:
          weight:                       # the first filter that the tensor's name contains counts
            - {filter: classifier, value: 1.0}
            - value: 0.3                # all others
    parameters: {normalize: true}       # for what a model does not say itself
    dtype: float32

What is not written has these values: `weight` 1; `density` 1; `lambda` 1; `normalize` true for linear, ties and
dare_ties, whose formulas are means, and false for task_arithmetic and dare_linear, whose formulas are sums. Paths
count from the working directory, as on the command line. What this library would do otherwise than the file says is
refused, in a sentence that names the key; nothing is left out silently.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast.checkpoints import find_checkpoints, open_checkpoint
from ratfast.checkpoints.names import is_buffer_name
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError

_TOP = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
_WITHOUT_EFFECT = ("int8_mask",)  # how mergekit stores a mask; the result is the same
_KEYS_OF = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "task_arithmetic": ("weight", "normalize", "lambda"),
    "ties": ("weight", "density", "normalize", "lambda"),
    "dare_linear": ("weight", "density", "normalize", "lambda", "rescale"),
    "dare_ties": ("weight", "density", "normalize", "lambda", "rescale"),
    "model_stock": ("filter_wise",),
}
_MEANS = ("linear", "ties", "dare_ties")


@dataclass(frozen=True)
class Merge:
    """What to merge, and how: `merge_files(merge.paths, output, method=merge.method, dtype=merge.dtype,
    **merge.options)`.

    Attributes:
        method: a name of `ratfast.averaging.methods`.
        paths: the checkpoints; the base first where the method has one.
        options: of the method: `weights` of the models other than the base, `base` as an index, and so on.
        dtype: of the result, or None for that of the first checkpoint.
    """

    method: str
    paths: list[Path]
    options: dict[str, Any]
    dtype: str | None


@dataclass(frozen=True)
class _Value:
    """A number for every tensor, by its name: the first rule whose filter the name contains ("" is in all)."""

    rules: tuple[tuple[str, float], ...]

    def at(self, name: str) -> float | None:
        return next((value for part, value in self.rules if part in name), None)

    @property
    def plain(self) -> float | None:
        """The number, if it is the same for all names."""
        return self.rules[0][1] if self.rules and self.rules[0][0] == "" else None


def read_mergekit(path: str | os.PathLike[str]) -> Merge:
    """Reads a configuration file.

    Args:
        path: of the YAML file.

    Raises:
        InputError: the file cannot be read, is not of this format, names a method or a key that is not supported, or
            a checkpoint that does not exist.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not a YAML document: {' '.join(str(error).split())}") from None
    try:
        return parse_mergekit(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_mergekit(content: Any) -> Merge:
    """`read_mergekit` of what the YAML says."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"it holds a {type(content).__name__}, expected keys such as merge_method and models"
        )
    method = _method(content)
    entries = _entries(content)
    shared = _parameters(content.get("parameters"), method, "parameters")
    own = [
        _parameters(entry.get("parameters"), method, f"parameters of {entry['model']}") for entry in entries
    ]
    for index, parameters in enumerate(own):
        for key in ("normalize", "lambda", "rescale", "filter_wise", "t"):
            if key in parameters:
                raise InputError(
                    f"{key} is given for the model {entries[index]['model']}, expected it under parameters for all"
                )
    names = [entry["model"] for entry in entries]
    base = content.get("base_model")
    if base is not None and not isinstance(base, str):
        raise InputError(f"base_model is {base!r}, expected a file or a folder")
    if method in ("linear", "passthrough"):
        base = None  # documented to have no effect there
    elif base is None:
        raise InputError(f"{method} needs a base_model")
    others = [index for index, name in enumerate(names) if name != base]
    if not others:
        raise InputError(f"models names none besides the base_model {base}")
    paths = [_file(name) for name in ([] if base is None else [base]) + [names[index] for index in others]]
    own = [own[index] for index in others]
    options = _options(method, shared, own, paths)
    if base is not None and method != "slerp":
        options["base"] = 0
    ours = "weighted" if method == "linear" else method.replace("_", "-")
    return Merge(ours, paths, options, _dtype(content))


def _method(content: Mapping[str, Any]) -> str:
    if "slices" in content:
        raise InputError(
            "slices (layers of several models, stacked) are not supported, expected whole models"
        )
    method = content.get("merge_method")
    if method == "passthrough":
        raise InputError(
            "merge_method passthrough is not supported: it stacks layers, and nothing is averaged"
        )
    if method not in _KEYS_OF:
        raise InputError(f"merge_method is {method!r}, expected one of {', '.join(_KEYS_OF)}")
    for key in content:
        if key not in _TOP:
            raise InputError(f"the key {key!r} is not supported, expected {', '.join(_TOP)}")
    return str(method)


def _entries(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = content.get("models")
    if not isinstance(entries, list) or not entries:
        raise InputError("models is missing or no list, expected entries such as `- model: FILE`")
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
            raise InputError(f"the entry {entry!r} of models names no model, expected `model: FILE`")
        for key in entry:
            if key not in ("model", "parameters"):
                raise InputError(f"the key {key!r} of the model {entry['model']} is not supported")
    return entries


def _parameters(given: Any, method: str, where: str) -> dict[str, Any]:
    """The parameters at one place: numbers by name as `_Value`, switches as bool."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"the {where} are {given!r}, expected names and values")
    result: dict[str, Any] = {}
    for key, value in given.items():
        if key in _WITHOUT_EFFECT:
            continue
        if key not in _KEYS_OF[method]:
            raise InputError(
                f"{key!r} among the {where} is not a parameter of {method}: {', '.join(_KEYS_OF[method])}"
            )
        if key in ("normalize", "rescale", "filter_wise"):
            if not isinstance(value, bool):
                raise InputError(f"{key} among the {where} is {value!r}, expected true or false")
            result[key] = value
        else:
            result[key] = _value(key, value, where)
    return result


def _value(key: str, given: Any, where: str) -> _Value:
    if _is_number(given):
        return _Value((("", float(given)),))
    if not isinstance(given, list) or not given:
        raise InputError(f"{key} among the {where} is {given!r}, expected a number or a list of filters")
    if all(_is_number(value) for value in given):
        raise InputError(
            f"{key} among the {where} is a gradient over layers, which is not supported; expected a number or filters"
        )
    rules = []
    for rule in given:
        if (
            not isinstance(rule, Mapping)
            or not rule.keys() <= {"filter", "value"}
            or not _is_number(rule.get("value"))
        ):
            raise InputError(
                f"{key} among the {where} has the rule {rule!r}, expected {{filter: TEXT, value: NUMBER}}"
            )
        part = rule.get("filter") or ""
        if not isinstance(part, str):
            raise InputError(
                f"{key} among the {where} has the filter {part!r}, expected a part of tensors' names"
            )
        rules.append((part, float(rule["value"])))
    return _Value(tuple(rules))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _options(
    method: str, shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]], paths: Sequence[Path]
) -> dict[str, Any]:
    if method == "model_stock":
        if shared.get("filter_wise"):
            raise InputError("filter_wise: true is not supported, expected model_stock by tensors")
        return {"per_tensor": True}
    if method == "slerp":
        if len(own) != 1:
            raise InputError(
                f"slerp needs exactly one model besides the base_model, but there are {len(own)}"
            )
        if "t" not in shared:
            raise InputError("slerp needs the parameter t")
        return {"alpha": _plain("t", shared["t"]), "per_tensor": True}
    normalize = shared.get("normalize", method in _MEANS)
    if method == "linear":
        return _linear(shared, own, paths, normalize)
    if not shared.get("rescale", True):
        raise InputError(f"rescale: false is not supported for {method}")
    weights = [_plain("weight", _first(parameters, shared, "weight", 1.0)) for parameters in own]
    if method in ("ties", "dare_ties") and not normalize:
        raise InputError(f"normalize: false is not supported for {method}, whose result is a mean")
    if method not in ("ties", "dare_ties") and normalize:
        weights = _normalized(weights, "the models")
    options: dict[str, Any] = {"weights": weights}
    if "lambda" in shared:
        options["scale"] = _plain("lambda", shared["lambda"])
    if method != "task_arithmetic":
        densities = {_plain("density", _first(parameters, shared, "density", 1.0)) for parameters in own}
        if len(densities) > 1:
            raise InputError(
                f"the models have the densities {sorted(densities)}, expected one density for all"
            )
        options["density"] = densities.pop()
    if method == "ties":
        options["per_tensor"] = True
    return options


def _linear(
    shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]], paths: Sequence[Path], normalize: bool
) -> dict[str, Any]:
    """One row of weights, and others for the tensors whose names the filters tell apart."""
    chains = [[p["weight"] for p in (parameters, shared) if "weight" in p] for parameters in own]

    def row(name: str) -> list[float]:
        found = [next((v for value in chain if (v := value.at(name)) is not None), 1.0) for chain in chains]
        return _normalized(found, repr(name) if name else "the models") if normalize else found

    if all(value.plain is not None for chain in chains for value in chain):
        return {"weights": row("")}
    layout = open_checkpoint(paths[0]).layout
    by_name = {entry.name: row(entry.name) for entry in layout if not is_buffer_name(entry.name, entry.dtype)}
    rows = list(by_name.values())
    plain = max(rows, key=rows.count) if rows else row("")
    others = {glob.escape(name): weights for name, weights in by_name.items() if weights != plain}
    return {"weights": plain, "weights_for": others} if others else {"weights": plain}


def _first(parameters: Mapping[str, Any], shared: Mapping[str, Any], key: str, default: float) -> _Value:
    return parameters.get(key) or shared.get(key) or _Value((("", default),))


def _plain(key: str, value: _Value) -> float:
    if value.plain is None:
        raise InputError(
            f"{key} differs between tensors by filters, which is supported for the weight of linear alone"
        )
    return value.plain


def _normalized(weights: Sequence[float], where: str) -> list[float]:
    total = math.fsum(weights)
    if total == 0.0:
        raise InputError(
            f"the weights of {where} sum to 0 and cannot be normalised; expected normalize: false"
        )
    return [weight / total for weight in weights]


def _file(name: str) -> Path:
    found = find_checkpoints([glob.escape(name) if not os.path.exists(name) else name])
    if len(found) != 1:
        raise InputError(f"the model {name} holds {len(found)} checkpoints, expected one; name the file")
    return found[0]


def _dtype(content: Mapping[str, Any]) -> str | None:
    """The type of the result. What `dtype` says of the computation needs no heed: sums are held in float64."""
    for key in ("out_dtype", "dtype"):
        name = content.get(key)
        if name is not None and (name not in BY_NAME or not BY_NAME[name].is_floating):
            known = ", ".join(dtype.name for dtype in BY_NAME.values() if dtype.is_floating)
            raise InputError(f"{key} is {name!r}, expected one of {known}")
    return content.get("out_dtype") or content.get("dtype")
