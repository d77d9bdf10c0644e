"""The rows of a pool: tensors of one layout, in one allocation or where a file has them mapped."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ratfast.averaging.members import Member
from ratfast.averaging.sections import Section
from ratfast.layout import Entry, Layout
from ratfast.rows import row_views

_HUGE_FROM = 4 << 20  # bytes from which the system is asked for huge pages


class ModelRow:
    """A model of a pool's layout.

    Args:
        tensors: by the names in the layout, in its types, shapes and strides; of Fisher diagonals some are missing.
        whole: (layout.nbytes,) uint8 where they are views of one row, else None.
    """

    def __init__(self, tensors: Mapping[str, Tensor], whole: Tensor | None = None):
        self.tensors = dict(tensors)
        self.whole = whole

    def sections(self, sections: Sequence[Section]) -> list[Tensor]:
        """Sections of the row, 1-D, each of one type; of a row that is in pieces those of single tensors."""
        if self.whole is not None:
            return [section.view(self.whole) for section in sections]
        return [flat(self.tensors[section.name]) for section in sections]

    @property
    def is_inference(self) -> bool:
        """Whether it was made in inference mode, so that torch refuses to write to it outside."""
        return any(tensor.is_inference() for tensor in self.tensors.values())

    @property
    def versions(self) -> list[int] | None:
        """How often each tensor has been written to, as torch counts it; None where it does not."""
        try:
            return [tensor._version for tensor in self.tensors.values()]
        except RuntimeError:  # of inference mode
            return None


def new_row(nbytes: int, device: torch.device) -> Tensor:
    """(nbytes,) uint8, uninitialised, on a line of 64 bytes."""
    if device.type != "cpu" or nbytes < _HUGE_FROM:
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    # The pages of a large row are a good part of the time of what fills it once.
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the system has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def new_model_row(layout: Layout, device: torch.device) -> ModelRow:
    """A row of uninitialised tensors in one allocation."""
    whole = new_row(layout.nbytes, device)
    return ModelRow(row_views(whole, layout), whole)


def model_row(member: Member, layout: Layout, device: torch.device) -> ModelRow:
    """A member in the pool's layout: a file that fits stays where it is mapped, everything else is copied."""
    if member.is_mapped and device.type == "cpu":
        if member.row is not None and member.layout == layout:
            return ModelRow({entry.name: member.tensors[entry.name] for entry in layout}, member.row)
        own = {entry.name: member.tensors.get(entry.name) for entry in layout}
        if all(
            tensor is None or _fits(tensor, entry) for entry, tensor in zip(layout, own.values(), strict=True)
        ):
            return ModelRow({name: tensor for name, tensor in own.items() if tensor is not None})
    row = new_model_row(layout, device)
    for name, tensor in row.tensors.items():
        if name in member.tensors:  # of Fisher diagonals the others are never read
            tensor.copy_(member.tensors[name])
    return row


def flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order of their addresses, 1-D, sharing its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _fits(tensor: Tensor, entry: Entry) -> bool:
    return tensor.dtype == getattr(torch, entry.dtype) and tensor.stride() == entry.strides
