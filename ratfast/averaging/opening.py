"""Models opened to be averaged: checked against each other, and divided into what is summed and what is not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ratfast.averaging.batch_norm import statistics_of
from ratfast.averaging.buffers import check_equal, check_kinds, is_mixed
from ratfast.averaging.members import Member, Model, buffer_names, open_members
from ratfast.averaging.rules import check_buffers
from ratfast.averaging.statistics import warn_if_statistics_differ
from ratfast.checkpoints.tensors import dtype_name


@dataclass(frozen=True)
class Opened:
    """Models that fit together.

    Attributes:
        members: all of them, those that hold Fisher diagonals last.
        buffers: names of the tensors that are buffers.
        summed: names of the tensors that take part in weighted sums.
        kept: the others: buffers that are kept, and integers.
    """

    members: list[Member]
    buffers: frozenset[str]
    summed: list[str]
    kept: list[str]


def open_models(models: Iterable[Model], policy: str, diagonals: int = 0) -> Opened:
    """Opens models, and applies the policy for buffers.

    Args:
        models: at least one.
        policy: "keep", "average" or "error".
        diagonals: how many of the last models hold numbers for the parameters only.

    Raises:
        InputError: a model cannot be opened, models do not fit together, or buffers differ and the policy is "error".
    """
    check_buffers(policy)
    members = open_members(models, diagonals)
    own = members[: len(members) - diagonals]
    first = members[0].tensors
    buffers = buffer_names(members)
    check_kinds(list(first), members, policy)
    if policy == "error":
        check_equal([name for name in first if name in buffers], own)
    if policy == "keep":
        warn_if_statistics_differ([statistics_of(m.tensors) for m in own], [m.label for m in own])
    summed = [name for name in first if is_mixed(dtype_name(name, first[name]), name in buffers, policy)]
    in_sums = set(summed)
    return Opened(members, buffers, summed, [name for name in first if name not in in_sums])
