"""A soup that grows by one model at a time: its average with each candidate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import ops
from ratfast.averaging.model_rows import ModelRow, new_row
from ratfast.averaging.pool import Pool

_FIRST_SUM = (
    2  # members from which they are kept as a sum; a sum in wider numbers is no more to read than two
)
_MOST_APART = 4  # members that are not in the sum
_LINE = 64  # bytes


class GrowingSoup:
    """The members of a soup, and the memory that its average with a candidate is written to.

    The first two members are read for every candidate, where they lie. Of more there is a sum, and only members
    that are not in it yet are read again. If the last candidate was accepted, the pass that tries the next one also
    writes the sum with it, which takes effect if that one is accepted too. So nothing is subtracted, and while
    candidates are refused no sum is written.

    Attributes:
        members: indices of the models, in the order in which they were added.
        row: the last average with a candidate; None before the first.
    """

    def __init__(self, pool: Pool):
        self.members: list[int] = []
        self.row: ModelRow | None = None
        self._pool = pool
        self._total: list[Tensor] = []  # of the members that are not apart
        self._apart: list[list[Tensor]] = []  # of each other member what takes part in sums
        self._candidate: list[Tensor] = []
        self._next_total: list[Tensor] = []  # with the candidate; empty where it was not written
        self._spare: list[Tensor] = []  # memory for it
        self._tried = 0  # members at the last trial

    def with_candidate(self, index: int) -> dict[str, Tensor]:
        """The average of the members and a candidate, valid until the next one."""
        if self.row is None:
            self.row = self._pool.new_row()
            self._state = self._pool.state(self.row)
            self._mean = self._pool.sections_of(self.row)
        if len(self._apart) > _MOST_APART:
            self._add_up()
        self._candidate = self._pool.summands(index)
        members = [*self.members, index]
        sources = [*self._summed(), *self._apart, self._candidate]
        outputs, weights = [self._mean], [[1.0 / len(members)] * len(sources)]
        self._spare, self._next_total = self._next_total or self._spare, []
        grows = len(self.members) > self._tried  # a guess: as the last candidate, so this one
        if grows and (self._total or len(self._apart) >= _FIRST_SUM):
            self._next_total, self._spare = self._spare or _wide(self._mean), []
            outputs, weights = [self._next_total, *outputs], [[1.0] * len(sources), *weights]
        ops.mix_(outputs, sources, weights)
        self._tried = len(self.members)
        self._pool.fill_kept(self.row, shares(len(self._pool), members))
        return dict(self._state)

    def accept(self, index: int) -> None:
        """Takes the last candidate into the soup; the first member needs no trial before."""
        if self._next_total:
            self._total, self._spare, self._next_total = self._next_total, self._total, []
            self._apart = []
        else:
            self._apart.append(self._candidate if self.members else self._pool.summands(index))
        self.members.append(index)

    def _summed(self) -> list[list[Tensor]]:
        return [self._total] if self._total else []

    def _add_up(self) -> None:
        """Takes the members that are apart into the sum, in place."""
        sources = [*self._summed(), *self._apart]
        if not self._total:
            self._total, self._spare = self._spare or _wide(self._mean), []
        ops.mix_([self._total], sources, [[1.0] * len(sources)])
        self._apart = []


def shares(count: int, members: Sequence[int]) -> list[float]:
    """The weights of the uniform average of some of `count` models."""
    chosen = set(members)
    return [1.0 / len(members) if index in chosen else 0.0 for index in range(count)]


def _wide(sections: Sequence[Tensor]) -> list[Tensor]:
    """Memory for sums over models: in the types that sums are held in on the sections' device.

    Each sum lies to the lines of 64 bytes as its section does, so that both can be written in whole lines in one pass.
    """
    dtypes = [
        torch.promote_types(section.dtype, torch.float32 if section.is_cuda else torch.float64)
        for section in sections
    ]
    places, end = [], 0
    for section, dtype in zip(sections, dtypes, strict=True):
        wanted = section.data_ptr() * (dtype.itemsize // section.itemsize) % _LINE
        places.append(end + (wanted - end) % _LINE)
        end = places[-1] + section.numel() * dtype.itemsize
    memory = new_row(end, sections[0].device) if sections else torch.empty(0)
    return [
        memory[place : place + section.numel() * dtype.itemsize].view(dtype)
        for place, section, dtype in zip(places, sections, dtypes, strict=True)
    ]
