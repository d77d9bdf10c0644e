"""A soup that grows by one model at a time: its average with each candidate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import ops
from ratfast.averaging.model_rows import ModelRow
from ratfast.averaging.pool import Pool

# Members that are read one by one while there is no sum: with it they would be no fewer bytes.
_MOST_BEFORE = 4
_MOST_APART = 2  # members that are not in the sum


class GrowingSoup:
    """The members of a soup, and the memory that its average with a candidate is written to.

    Members are read for every candidate where they lie, until there are more than a few: from then on there is a sum
    of all but the last few, to which those are added in place, and only when yet another is accepted. So nothing is
    subtracted, no sum is written while candidates are refused, and there is one sum, not one with and one without the
    candidate: new memory takes far longer to come by than members that are read again.

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

    def with_candidate(self, index: int) -> dict[str, Tensor]:
        """The average of the members and a candidate, valid until the next one."""
        if self.row is None:
            self.row = self._pool.new_row()
            self._state = self._pool.state(self.row)
            self._mean = self._pool.sections_of(self.row)
        if len(self._apart) > (_MOST_APART if self._total else _MOST_BEFORE):
            self._add_up()
        self._candidate = self._pool.summands(index)
        members = [*self.members, index]
        sources = [*self._summed(), *self._apart, self._candidate]
        ops.mix_([self._mean], sources, [[1.0 / len(members)] * len(sources)])
        self._pool.fill_kept(self.row, shares(len(self._pool), members))
        return dict(self._state)

    def accept(self, index: int) -> None:
        """Takes the last candidate into the soup; the first member needs no trial before."""
        self._apart.append(self._candidate if self.members else self._pool.summands(index))
        self.members.append(index)

    def _summed(self) -> list[list[Tensor]]:
        return [self._total] if self._total else []

    def _add_up(self) -> None:
        """Takes the members that are apart into the sum, in place."""
        sources = [*self._summed(), *self._apart]
        if not self._total:
            self._total = _wide(self._mean)
        ops.mix_([self._total], sources, [[1.0] * len(sources)])
        self._apart = []


def shares(count: int, members: Sequence[int]) -> list[float]:
    """The weights of the uniform average of some of `count` models."""
    chosen = set(members)
    return [1.0 / len(members) if index in chosen else 0.0 for index in range(count)]


def _wide(sections: Sequence[Tensor]) -> list[Tensor]:
    """Memory for sums over models, in the types that sums are held in on the sections' device."""
    return [
        torch.empty_like(
            section,
            dtype=torch.promote_types(section.dtype, torch.float32 if section.is_cuda else torch.float64),
        )
        for section in sections
    ]
