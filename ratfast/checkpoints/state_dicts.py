"""Where in the content of a pickle the state dict is, and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ratfast.checkpoints.descriptions import Namespace, NumpyArray, NumpyType, Storage, Tensor, Unsupported
from ratfast.checkpoints.pickle_machine import Global, Machine, PickleError
from ratfast.errors import InputError

PLACES = ("state_dict", "model", "state_dict_ema", "model_dict")
"""Keys under which trainers keep the state dict, in the order in which they are looked for."""

_VALUE_BYTES = 8  # of a reference to a value, where values are copied
_DEPTH = 100  # of nested plain values; those of trainers are nested 5 deep


@dataclass(frozen=True)
class Found:
    """A state dict and its surroundings.

    Attributes:
        tensors: by name, in the order of the file.
        metadata: the plain values beside it.
        left_out: the keys beside it that hold tensors.
    """

    tensors: dict[str, Tensor | Unsupported]
    metadata: dict[str, Any]
    left_out: tuple[str, ...]


def find_state_dict(path: object, content: Any, key: str | None, machine: Machine) -> Found:
    """Finds the state dict in what a pickle holds.

    Args:
        path: the file, for errors.
        content: what the pickle holds.
        key: under which key it is; by default the first of `PLACES` that holds tensors, or the whole.
        machine: that read the pickle.

    Raises:
        InputError: there is none, or one of its entries is not a tensor.
        PickleError: a value beside it unfolds to more than the file's size justifies.
    """
    place = _place(path, content, key)
    state = content if place is None else content[place]
    if not isinstance(state, dict) or not state or (place is None and not _has_tensors(state)):
        raise InputError(
            f"{path} holds no state dict, neither by itself nor under any of {', '.join(map(repr, PLACES))}"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, (Tensor, Unsupported)):
            kind = "tensor" if isinstance(value, (Tensor, Unsupported)) else type(value).__name__
            raise InputError(f"{path} holds a {kind} under {name!r}, where a state dict has a tensor")
    metadata, left_out = {}, []
    for name, value in content.items() if place is not None else ():
        if name == place:
            continue
        try:
            metadata[str(name)] = _plain(machine, value, _DEPTH)
        except _HoldsTensor:
            left_out.append(str(name))
    return Found(state, metadata, tuple(left_out))


def _place(path: object, content: Any, key: str | None) -> str | None:
    """The key of the state dict; None where the content is the state dict itself."""
    candidates = (
        {name: value for name, value in content.items() if isinstance(value, dict)}
        if isinstance(content, dict)
        else {}
    )
    with_tensors = [name for name, value in candidates.items() if _has_tensors(value)]
    if key is not None:
        if key not in candidates:
            there = (
                f"it has {', '.join(map(repr, with_tensors[:8]))}"
                if with_tensors
                else "it has none under a key"
            )
            raise InputError(f"{path} holds no state dict under {key!r}: {there}")
        return key
    for place in PLACES:
        if place in with_tensors:
            return place
    if isinstance(content, dict) and _has_tensors(content):
        return None
    return next((place for place in PLACES if place in candidates), None)


def _has_tensors(values: dict[Any, Any]) -> bool:
    return any(isinstance(value, (Tensor, Unsupported)) for value in values.values())


class _HoldsTensor(Exception):
    """A value is or contains a tensor, so it is not plain."""


def _plain(machine: Machine, value: Any, depth: int) -> Any:
    """A value in Python's own types; numpy's and torch's descriptions become numbers, lists and names."""
    machine.charge(_VALUE_BYTES)
    if depth == 0:
        raise PickleError("its values are nested too deeply")
    if isinstance(value, (Tensor, Unsupported, Storage)):
        raise _HoldsTensor
    if isinstance(value, Namespace):
        value = value.attributes
    if isinstance(value, dict):
        return {key: _plain(machine, item, depth - 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(machine, item, depth - 1) for item in value)
    if isinstance(value, NumpyArray):
        return value.values
    if isinstance(value, NumpyType):
        return value.code
    if isinstance(value, Global):
        return value.name
    return bytes(value) if type(value) is bytearray else value
