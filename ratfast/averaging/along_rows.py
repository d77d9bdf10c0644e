"""The rows of averages along a run: means of models of one layout, each in one allocation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import ops
from ratfast.averaging.members import Member, buffer_names, in_order, strides_of
from ratfast.averaging.rules import layout_mismatch
from ratfast.checkpoints.tensors import dtype_name, layout_of
from ratfast.dtypes import BY_NAME
from ratfast.layout import Layout, TensorSpec

RowState = tuple[dict[str, int], dict[str, Tensor]]
"""Counters, and tensors by name."""


class Template:
    """What all rows of one model share: which tensors are averaged, and their places."""

    def __init__(self, first: Member, policy: str, device: torch.device | None):
        self.names = list(first.tensors)
        self.dtypes = {name: tensor.dtype for name, tensor in first.tensors.items()}
        self.label = first.label
        self._all = layout_of(first.tensors)
        self._shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
        buffers = buffer_names([first])
        summed = [
            name
            for name, tensor in first.tensors.items()
            if tensor.is_floating_point() and (policy == "average" or name not in buffers)
        ]
        self.kept = [name for name in self.names if name not in set(summed)]
        place = next((tensor.device for tensor in first.tensors.values()), torch.device("cpu"))
        self.device = device or place
        self.layout = Layout.pack(
            TensorSpec(
                name,
                tuple(first.tensors[name].shape),
                _held_in(dtype_name(name, first.tensors[name])),
                tuple(strides_of(first.tensors[name])),
            )
            for name in summed
        )

    def check(self, member: Member) -> None:
        """Raises InputError if a model differs from the first in names or shapes."""
        shapes = {name: tensor.shape for name, tensor in member.tensors.items()}
        if shapes != self._shapes:
            raise layout_mismatch(member.label, self.label, self._all.differences(layout_of(member.tensors)))

    def values(self, member: Member) -> list[Tensor]:
        """The tensors to be averaged, in the order of the layout and in its memory orders."""
        return [in_order(member.tensors[entry.name], entry.strides, self.device) for entry in self.layout]

    def average(self, rows: list[Row]) -> dict[str, Tensor]:
        """The mean of rows weighted by their counts, in the model's types."""
        total = sum(row.count for row in rows)
        outputs = [
            torch.empty_strided(entry.shape, entry.strides, dtype=self.dtypes[entry.name], device=self.device)
            for entry in self.layout
        ]
        ops.mix_([outputs], [row.tensors for row in rows], [[row.count / total for row in rows]])
        values = dict(zip((entry.name for entry in self.layout), outputs, strict=True))
        values.update((name, tensor.clone()) for name, tensor in rows[-1].kept.items())
        return {name: values[name] for name in self.names}


class Row:
    """A mean of models in one allocation.

    Attributes:
        tensors: views of it, in the order of the template's layout.
        kept: copies of the tensors that are not averaged, of the latest model.
        count: how many models are in it.
        first: step of the earliest.
        last: step of the latest.
    """

    def __init__(self, template: Template):
        self._template = template
        row = torch.empty(template.layout.nbytes, dtype=torch.uint8, device=template.device)
        self.tensors = [
            row[entry.offset : entry.offset + entry.nbytes]
            .view(getattr(torch, entry.dtype))
            .as_strided(entry.shape, entry.strides)
            for entry in template.layout
        ]
        self.kept: dict[str, Tensor] = {}
        self.count = self.first = self.last = 0

    def add(self, member: Member, step: int, rate: float | None = None) -> None:
        """Moves the mean towards a model by `rate`; by default to the mean of all."""
        values = self._template.values(member)
        if self.count == 0:
            self.first = step
            ops.mix_([self.tensors], [values], [[1.0]])
        else:
            rate = 1.0 / (self.count + 1) if rate is None else rate
            ops.mix_([self.tensors], [self.tensors, values], [[1.0 - rate, rate]])
        self.kept = {
            name: member.tensors[name].to(self._template.device, copy=True) for name in self._template.kept
        }
        self.count += 1
        self.last = step

    def state(self) -> RowState:
        """What `restored` makes the same row of; shares the row's memory."""
        values = {"count": self.count, "first": self.first, "last": self.last}
        names = [entry.name for entry in self._template.layout]
        return values, {**dict(zip(names, self.tensors, strict=True)), **self.kept}

    @classmethod
    def restored(cls, template: Template, state: RowState) -> Row:
        """The row whose `state` is given, in memory of its own."""
        values, tensors = state
        row = cls(template)
        for entry, tensor in zip(template.layout, row.tensors, strict=True):
            tensor.copy_(tensors[entry.name])
        row.kept = {name: tensors[name].to(template.device, copy=True) for name in template.kept}
        row.count, row.first, row.last = (int(values[key]) for key in ("count", "first", "last"))
        return row

    def merge(self, later: Row) -> Row:
        """Becomes the mean of the models of both, and returns itself."""
        share = later.count / (self.count + later.count)
        ops.mix_([self.tensors], [self.tensors, later.tensors], [[1.0 - share, share]])
        self.kept, self.count, self.last = later.kept, self.count + later.count, later.last
        return self


def merged(rows: Sequence[Row]) -> Row | None:
    """The mean of the models of all rows, in the memory of the first; None of none."""
    return functools.reduce(Row.merge, rows) if rows else None


def _held_in(dtype: str) -> str:
    return dtype if BY_NAME[dtype].itemsize >= 4 else "float32"
