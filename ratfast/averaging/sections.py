"""Sections: neighbouring tensors of one element type, treated as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ratfast.dtypes import BY_NAME
from ratfast.layout import Entry


@dataclass(frozen=True)
class Section:
    """A range of a row that holds elements of one type.

    Attributes:
        dtype: a name of `ratfast.dtypes.BY_NAME`.
        offset: bytes from the start of the row.
        nbytes: its length.
        name: of its first tensor, which is its only one in `tensor_sections`.
    """

    dtype: str
    offset: int
    nbytes: int
    name: str = dataclasses.field(default="", compare=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.nbytes // BY_NAME[self.dtype].itemsize

    def view(self, row: Tensor) -> Tensor:
        """The section of a row of bytes, (numel,) of its type, sharing memory."""
        return row[self.offset : self.offset + self.nbytes].view(getattr(torch, self.dtype))


def sections(entries: Iterable[Entry]) -> list[Section]:
    """The fewest sections that cover `entries`, which are in the order of their offsets."""
    found: list[Section] = []
    for entry in entries:
        last = found[-1] if found else None
        if last is not None and last.dtype == entry.dtype and last.offset + last.nbytes == entry.offset:
            found[-1] = dataclasses.replace(last, nbytes=last.nbytes + entry.nbytes)
        elif entry.nbytes:
            found.append(Section(entry.dtype, entry.offset, entry.nbytes, entry.name))
    return found


def tensor_sections(entries: Iterable[Entry]) -> list[Section]:
    """A section for each entry, for rows that are in pieces."""
    return [Section(e.dtype, e.offset, e.nbytes, e.name) for e in entries if e.nbytes]
