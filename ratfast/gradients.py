"""Gradients as views of rows, so that autograd accumulates into one tensor for a whole model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Layout
from ratfast.rows import dtype_name, entry_view


class GradientRow:
    """The gradients of the parameters of one element type.

    Attributes:
        row: 1-D, one element per element of those parameters, in the order of the layout.
        start: byte of the layout at which the row begins.
        count: number of parameters whose gradient is a view of it.
    """

    def __init__(self, row: Tensor, start: int):
        self.row = row
        self.start = start
        self.count = 0


def gradient_row(grad: Tensor | None) -> GradientRow | None:
    """The row that `grad` is a preset view of, or None."""
    row, address = getattr(grad, "_ratfast_gradient_row", (None, 0))
    # Casting a module, for one, assigns the .data of its gradients and leaves the objects in place.
    return row if row is not None and grad.data_ptr() == address else None


class Gradients:
    """The gradient rows of the parameters of a layout, and the views preset in `.grad`.

    Values of gradients that parameters have already move along.

    Args:
        parameters: by name; all of the floating-point types of `spans`.
        layout: their places.
        spans: first and last byte of the parameters of each element type.
        device: where the parameters are.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        layout: Layout,
        spans: Mapping[str, tuple[int, int]],
        device: torch.device,
    ):
        self._layout = layout
        self._rows: dict[str, GradientRow] = {}
        for name, (start, end) in spans.items():
            if BY_NAME[name].is_floating:
                size = (end - start) // BY_NAME[name].itemsize
                self._rows[name] = GradientRow(
                    torch.zeros(size, dtype=getattr(torch, name), device=device), start
                )
        self._parameters = {
            name: parameter for name, parameter in parameters.items() if layout[name].dtype in self._rows
        }
        kept = {name: parameter.grad for name, parameter in self._parameters.items()}
        self.attach()
        for name, grad in kept.items():
            if grad is not None and self._parameters[name].requires_grad:
                self._parameters[name].grad.copy_(grad.to_dense() if grad.is_sparse else grad)

    def attach(self) -> None:
        """Presets the views wherever they are missing; frozen parameters get no gradient."""
        for row in self._rows.values():
            row.count = 0
        for name, parameter in self._parameters.items():
            row = self._rows[self._layout[name].dtype]
            if not self._in_place(name):
                parameter.grad = None
            if parameter.requires_grad:
                if parameter.grad is None:
                    view = entry_view(row.row, self._layout[name], row.start)
                    view._ratfast_gradient_row = (row, view.data_ptr())
                    parameter.grad = view
                row.count += 1

    def in_place(self) -> bool:
        """Whether every gradient is its row's view, or rightly absent."""
        return all(map(self._in_place, self._parameters))

    def row(self, dtype: torch.dtype) -> Tensor:
        """The row of an element type.

        Raises:
            InputError: there is none, or a gradient has been taken out of it.
        """
        kind = dtype_name(dtype)
        if kind not in self._rows:
            raise InputError(f"the arena holds no gradients of type {kind}")
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and self._layout[name].dtype == kind and not self._in_place(name):
                raise InputError(
                    f"the gradient of {name} has been taken out of the arena (zero_grad(set_to_none=True) or "
                    "an assignment to .grad does that); clear gradients with arena.zero_grad()"
                )
        return self._rows[kind].row

    def zero(self) -> None:
        """Fills the rows with zeros."""
        for row in self._rows.values():
            row.row.zero_()

    def _in_place(self, name: str) -> bool:
        parameter = self._parameters[name]
        if parameter.requires_grad:
            return gradient_row(parameter.grad) is self._rows[self._layout[name].dtype]
        return parameter.grad is None
