"""A pool of models of one architecture: a matrix with a model in each row, and the algebra over it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ratfast import ops
from ratfast.averaging.buffers import average_integer, check_equal, check_kinds, is_mixed
from ratfast.averaging.members import Member, Model, buffer_names, model_list, open_members
from ratfast.averaging.rules import check_buffers, check_weights
from ratfast.averaging.sections import Section, sections
from ratfast.checkpoints import MappedFile, is_safetensors, read_header
from ratfast.checkpoints.tensors import dense_strides, dtype_name
from ratfast.dtypes import BY_NAME
from ratfast.layout import Entry, Layout, TensorSpec

_GRAM_CHUNK = 1 << 18  # columns that are widened to float64 at a time


class Pool:
    """N models as the rows of a matrix. Make one with `Pool.open`.

    Attributes:
        layout: where each tensor stands in a row.
        names: what each model is called: its file, or "model 1" and so on.
        device: where the rows are.
    """

    def __init__(
        self,
        layout: Layout,
        rows: Sequence[Tensor],
        names: Sequence[str],
        buffers: frozenset[str],
        policy: str,
    ):
        """For `open`, which checks that the rows, (layout.nbytes,) uint8 each, belong together."""
        self.layout = layout
        self.names = tuple(names)
        self.device = rows[0].device
        self._rows = list(rows)
        self._buffers = buffers
        self._policy = policy
        summed = [entry for entry in layout if is_mixed(entry.dtype, entry.name in buffers, policy)]
        in_sums = {entry.name for entry in summed}
        kept = [entry for entry in layout if entry.name not in in_sums]
        self._sections = sections(summed)
        self._kept = [entry.name for entry in kept]
        self._copied: list[Section] = [] if policy == "average" else sections(kept)

    @classmethod
    def open(
        cls, models: Iterable[Model], device: torch.device | str | None = None, *, buffers: str = "error"
    ) -> Pool:
        """Opens models for averaging.

        Safetensors files stay where they are and are mapped, if they agree in layout with the first model and
        the pool is on the CPU; everything else is copied into a row of its own once, here, so that later
        changes of a module do not reach the pool. Where models differ in an element type, the wider one is
        taken.

        Args:
            models: modules, state dicts, or paths of checkpoints; at least one.
            device: where the rows are kept; by default where the first model is.
            buffers: as in `average`, for everything that the pool computes.

        Raises:
            InputError: a model cannot be opened, models do not fit together, or buffers differ and `buffers`
                is "error".
        """
        check_buffers(buffers)
        models = model_list(models)
        members = open_members(models)
        of_buffers = buffer_names(members)
        first = members[0].tensors
        check_kinds([name for name in first if first[name].is_floating_point()], members)
        place = first[next(iter(first))].device if device is None and first else torch.device(device or "cpu")
        layout = _layout(models[0], members, of_buffers)
        if buffers == "error":
            check_equal([entry.name for entry in layout if entry.name in of_buffers], members)
        rows = [_row(model, member, layout, place) for model, member in zip(models, members, strict=True)]
        return cls(layout, rows, [member.label for member in members], of_buffers, buffers)

    def __len__(self) -> int:
        return len(self._rows)

    def average(self, w: Iterable[float] | None = None) -> dict[str, Tensor]:
        """The sum of the rows weighted by `w`, one finite number for each model; by default 1 / N each.

        Returns:
            New tensors by name, on the pool's device, views of one row.

        Raises:
            InputError: the weights are not N finite numbers.
        """
        return self._mix([check_weights(w, len(self))])[0]

    def mix(self, W: Tensor | Iterable[Iterable[float]]) -> list[dict[str, Tensor]]:
        """K weighted sums, with every row read once for all of them.

        Args:
            W: (K, N) weights. Rows of the pool that have weight 0 throughout are not read.

        Returns:
            K dicts of new tensors, each the views of one row.

        Raises:
            InputError: a row of `W` is not N finite numbers.
        """
        return self._mix([check_weights(w, len(self)) for w in W])

    def gram(self) -> Tensor:
        """The inner products of all pairs of models over their parameters, without buffers.

        Returns:
            (N, N) float64 on the CPU, accumulated in float64.
        """
        total = torch.zeros(len(self), len(self), dtype=torch.float64, device=self.device)
        parameters = [e for e in self.layout if BY_NAME[e.dtype].is_floating and e.name not in self._buffers]
        for section in sections(parameters):
            pieces = [section.view(row) for row in self._rows]
            for start in range(0, section.numel, _GRAM_CHUNK):
                block = torch.stack([piece[start : start + _GRAM_CHUNK].double() for piece in pieces])
                total.addmm_(block, block.T)
        return total.cpu()

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """The tensors of a row, (layout.nbytes,) uint8, by name; they share its memory."""
        return {entry.name: _view(row, entry) for entry in self.layout}

    def new_row(self) -> Tensor:
        """An uninitialised row on the pool's device."""
        return torch.empty(self.layout.nbytes, dtype=torch.uint8, device=self.device)

    def summands(self, index: int) -> list[Tensor]:
        """What of model `index` takes part in sums: its sections, 1-D, each of one element type."""
        return self.sections_of(self._rows[index])

    def sections_of(self, row: Tensor) -> list[Tensor]:
        """The sections of `summands`, of any row."""
        return [section.view(row) for section in self._sections]

    def fill_kept(self, row: Tensor, weights: Sequence[float]) -> None:
        """Writes into a row what takes no part in sums: buffers that are kept, and integers."""
        for section in self._copied:
            section.view(row).copy_(section.view(self._rows[0]))
        if self._policy == "average" and self._kept:
            target = self.views(row)
            for name in self._kept:
                target[name].copy_(average_integer(name, self._members(), weights))

    def _mix(self, weights: Sequence[Sequence[float]]) -> list[dict[str, Tensor]]:
        counted = [n for n in range(len(self)) if any(w[n] != 0.0 for w in weights)] or [0]
        rows = [self.new_row() for _ in weights]
        ops.mix_(
            [self.sections_of(row) for row in rows],
            [self.summands(n) for n in counted],
            [[w[n] for n in counted] for w in weights],
        )
        for row, w in zip(rows, weights, strict=True):
            self.fill_kept(row, w)
        return [self.views(row) for row in rows]

    def _members(self) -> list[Member]:
        return [Member(name, self.views(row), None) for name, row in zip(self.names, self._rows, strict=True)]


def _layout(first_model: Any, members: Sequence[Member], buffers: frozenset[str]) -> Layout:
    """The first file's own layout if rows can be kept in it, else the canonical one in the widest types."""
    first = members[0].tensors
    dtypes = {}
    for name, tensor in first.items():
        dtype = tensor.dtype
        for member in members[1:]:
            if member.tensors[name].dtype != dtype and dtype.is_floating_point:
                dtype = torch.promote_types(dtype, member.tensors[name].dtype)
        dtypes[name] = str(dtype).removeprefix("torch.")
    if _is_mappable(first_model):
        layout = read_header(first_model).layout
        if all(
            entry.dtype == dtypes[entry.name] and entry.offset % BY_NAME[entry.dtype].itemsize == 0
            for entry in layout
        ):
            return layout
    return Layout.pack(
        TensorSpec(name, tuple(tensor.shape), dtypes[name], dense_strides(tensor), name in buffers)
        for name, tensor in first.items()
    )


def _row(model: Any, member: Member, layout: Layout, device: torch.device) -> Tensor:
    if device.type == "cpu" and _is_mappable(model):
        file = MappedFile(model, writable=True)
        if file.header.layout == layout and file.header.data_start % 8 == 0:
            return torch.from_numpy(file.row)
    row = torch.empty(layout.nbytes, dtype=torch.uint8, device=device)
    for entry in layout:
        tensor = member.tensors[entry.name]
        dtype_name(entry.name, tensor)
        _view(row, entry).copy_(tensor)
    return row


def _view(row: Tensor, entry: Entry) -> Tensor:
    piece = row[entry.offset : entry.offset + entry.nbytes].view(getattr(torch, entry.dtype))
    return piece.as_strided(entry.shape, entry.strides)


def _is_mappable(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike)) and is_safetensors(model)
