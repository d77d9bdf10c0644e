"""Models to be averaged, seen alike: tensors by name, and which of them are buffers."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ratfast.averaging.rules import layout_mismatch
from ratfast.checkpoints import find_checkpoints, open_checkpoint
from ratfast.checkpoints.names import is_buffer_name
from ratfast.checkpoints.tensors import dense_strides, dtype_name, layout_of, load_checkpoint, map_row
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Layout, same_order
from ratfast.rows import row_views

Model = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]


@dataclass(frozen=True)
class Member:
    """One model.

    Attributes:
        label: what errors call it.
        tensors: by name, detached; they share the model's memory.
        buffers: which of them are buffers, or None where only names can tell (state dicts, files).
        is_mapped: whether the tensors are a file's, mapped privately, which nobody else can change.
        row: of such a file all tensors as (layout.nbytes,) uint8, where they lie in one row, else None.
        layout: of that row.
    """

    label: str
    tensors: dict[str, Tensor]
    buffers: frozenset[str] | None
    is_mapped: bool = False
    row: Tensor | None = None
    layout: Layout | None = None


def model_list(models: Iterable[Model]) -> list[Model]:
    """The models as a list, with the files of folders and patterns in their place.

    Raises:
        InputError: it would be empty, or one model was given in place of several.
    """
    # Each of these can be iterated over, and would give layers, names or letters.
    if isinstance(models, (nn.Module, Mapping, str, os.PathLike)):
        raise InputError("models is a single model, expected a list of models")
    models = [found for model in models for found in _named(model)]
    if not models:
        raise InputError("there are no models to average")
    return models


def _named(model: Model) -> list[Model]:
    if isinstance(model, (str, os.PathLike)) and not os.path.isfile(model):
        return list(find_checkpoints(model))
    return [model]


def open_members(models: Iterable[Model], diagonals: int = 0) -> list[Member]:
    """Opens all models and checks that they fit the first; files are mapped, not read.

    Args:
        models: at least one.
        diagonals: how many of the last need only the parameters of the first; what else they hold is left out.

    Raises:
        InputError: there is none, one cannot be opened, or one differs in names or shapes.
    """
    members = [open_member(model, index) for index, model in enumerate(model_list(models))]
    first = members[0]
    count = len(members) - diagonals
    parameters = first.tensors.keys() - buffer_names(members[:count]) if diagonals else frozenset()
    return _fitting(members[:count]) + [_restricted(member, parameters, first) for member in members[count:]]


def _fitting(members: list[Member]) -> list[Member]:
    first = members[0]
    for member in members:
        for name, tensor in member.tensors.items():
            dtype_name(name, tensor)
    for member in members[1:]:
        if not _fit(first.tensors, member.tensors):
            phrases = layout_of(first.tensors).differences(layout_of(member.tensors))
            raise layout_mismatch(member.label, first.label, phrases)
    return members


def tied(names: Sequence[str], members: Sequence[Member]) -> list[list[str]]:
    """Groups the names that are the same memory in every model."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in names:
        tensors = [member.tensors[name] for member in members]
        if tensors[0].numel() == 0:
            groups[(name,)].append(name)
            continue
        same = tuple((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors)
        groups[same].append(name)
    return list(groups.values())


def _restricted(member: Member, names: Set[str], first: Member) -> Member:
    """A member's tensors of some names, which must be there in the shapes of the first's."""
    own = {name: tensor for name, tensor in member.tensors.items() if name in names}
    wanted = {name: tensor for name, tensor in first.tensors.items() if name in names}
    if not _fit(wanted, own):
        raise layout_mismatch(member.label, first.label, layout_of(wanted).differences(layout_of(own)))
    return dataclasses.replace(member, tensors=own, row=None)


def open_member(model: Model, index: int) -> Member:
    """Opens one model; `index` counts from 0 and only serves its label."""
    label = f"model {index + 1}"
    if isinstance(model, nn.Module):
        state = model.state_dict()
        buffers = frozenset(name for name, _ in model.named_buffers(remove_duplicate=False))
        return Member(label, _tensors(label, state), buffers)
    if isinstance(model, Mapping):
        return Member(label, _tensors(label, model), None)
    if isinstance(model, (str, os.PathLike)):
        return _open_file(model)
    raise InputError(f"{label} is a {type(model).__name__}, expected a module, a state dict or a path")


def _open_file(path: str | os.PathLike[str]) -> Member:
    checkpoint = open_checkpoint(path, writable=True)
    row = None if checkpoint.row is None else map_row(checkpoint)
    if row is None:
        return Member(os.fspath(path), load_checkpoint(checkpoint, mapped=True), None, True)
    stored = row_views(row, checkpoint.layout)
    tensors = {name: stored[checkpoint.aliases.get(name, name)] for name in checkpoint.names}
    return Member(os.fspath(path), tensors, None, True, row, checkpoint.layout)


def buffer_names(members: Sequence[Member]) -> frozenset[str]:
    """Which entries are buffers: as the first module among the members says, else as the names tell.

    Integer tensors count as buffers everywhere: no optimizer trains them.
    """
    first = members[0].tensors
    named = next((member.buffers for member in members if member.buffers is not None), None)
    return frozenset(
        name
        for name, tensor in first.items()
        if not BY_NAME[dtype_name(name, tensor)].is_floating
        or (is_buffer_name(name, dtype_name(name, tensor)) if named is None else name in named)
    )


def in_order(tensor: Tensor, strides: tuple[int, ...], device: torch.device) -> Tensor:
    """`tensor` in the order of the given dense strides, on the device: itself, or else a copy."""
    if tensor.device == device and same_order(tensor.shape, tensor.stride(), strides):
        return tensor
    copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device)
    return copy.copy_(tensor)


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides if it is dense, else those that a dense copy takes."""
    return tensor.stride() if tensor.is_contiguous() else dense_strides(tensor)


def _tensors(label: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"the entry {name!r} of {label} is a {type(value).__name__}, expected a tensor")
    return {name: value.detach().resolve_neg() for name, value in state.items()}


def _fit(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return first.keys() == other.keys() and all(first[name].shape == other[name].shape for name in first)
