"""What happens to the tensors that are not simply summed: buffers under each policy, and integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast.averaging.members import Member
from ratfast.averaging.rules import bool_buffer, buffers_differ, other_kind
from ratfast.dtypes import BY_NAME
from ratfast.rows import dtype_name


def is_mixed(dtype: str, is_buffer: bool, policy: str) -> bool:
    """Whether a tensor whose type in the first model is `dtype` takes part in the weighted sums."""
    return BY_NAME[dtype].is_floating and (not is_buffer or policy == "average")


def check_equal(names: Sequence[str], members: Sequence[Member]) -> None:
    """Raises InputError if a model's buffers `names` are not those of the first; NaN equals NaN."""
    first = members[0]
    for member in members[1:]:
        differing = [name for name in names if not _equal(first.tensors[name], member.tensors[name])]
        if differing:
            raise buffers_differ(differing, member.label, first.label)


def average_integer(name: str, members: Sequence[Member], weights: Sequence[float]) -> Tensor:
    """The weighted sum of an integer tensor, in float64, rounded to the nearest integer of the first's type.

    Raises:
        InputError: it holds truth values that differ.
    """
    first = members[0].tensors[name]
    if first.dtype == torch.bool:
        if not all(_equal(first, member.tensors[name]) for member in members[1:]):
            raise bool_buffer(name)
        return first
    total = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    for member, weight in zip(members, weights, strict=True):
        total.add_(member.tensors[name].to(total), alpha=weight)
    return total.round_().to(first.dtype)


def check_kinds(names: Sequence[str], members: Sequence[Member], policy: str) -> None:
    """Refuses sums over integers and floating numbers, which would be cut off without a word.

    Raises:
        InputError: a tensor is of a floating type in the first model and not in another; or, where buffers are
            averaged, the other way round.
    """
    first = members[0]
    for member in members[1:]:
        for name in names:
            if name not in member.tensors:
                continue
            floating = first.tensors[name].is_floating_point()
            if member.tensors[name].is_floating_point() != floating and (floating or policy == "average"):
                own, other = dtype_name(first.tensors[name].dtype), dtype_name(member.tensors[name].dtype)
                raise other_kind(name, other, member.label, own, first.label)


def _equal(first: Tensor, other: Tensor) -> bool:
    other = other.to(first.device)
    if first.dtype == other.dtype:
        if torch.equal(_bytes(first), _bytes(other)):
            return True
        if not first.is_floating_point():
            return False
    # Numbers that are equal may have different bytes: other types, or zeros of both signs.
    return torch.allclose(first.double(), other.double(), rtol=0.0, atol=0.0, equal_nan=True)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
