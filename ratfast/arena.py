"""A module whose parameters, buffers and gradients live in flat rows.

After `Arena(module)` every parameter and every persistent buffer of the module is a view of one allocation,
at the places of a `ratfast.layout.Layout`. The module works as before; an optimizer step, a checkpoint, a
copy of the weights or an average of models then are one pass over one row, not one over each tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.gradients import Gradients
from ratfast.layout import Layout
from ratfast.rows import (
    dtype_name,
    entry_view,
    own_storage,
    refuse_foreign,
    refuse_overlaps,
    row_tensors,
    same_view,
    tensor_spec,
)

_ALIGNMENT = 64  # bytes: a cache line, and more than any vector load of the kernels


class Arena:
    """One row that holds a module's parameters and persistent buffers.

    Names, shapes, strides (of dense tensors: channels-last stays channels-last) and element types are kept,
    the parameter objects stay the same objects, and values move along. Tied parameters are held once, under
    their first name. Non-dense tensors become C-ordered. Buffers registered with `persistent=False` are no
    part of a checkpoint and stay where they are.

    Gradients of parameters that require one are preset as zeros in rows of their own, so that autograd
    accumulates there. A parameter that a loss does not reach has a zero gradient then, not None.

    Moving or casting the module (`module.to(...)`), replacing a parameter or assigning its `.data` takes
    tensors out of the row; every method that hands the row out or fills it notices that and refuses. Move the
    arena itself with `to`, best before an optimizer is made.

    `torch.save` stores a shared allocation once; plain `pickle` stores it once per tensor, so use the former.

    Args:
        module: at least one parameter; on one device; tensors of the types of `ratfast.dtypes`.
        grads: False to leave gradients alone, for a module that is only evaluated.

    Attributes:
        module: the module.
        layout: names and places of its tensors.

    Raises:
        InputError: a tensor cannot live in a row (uninitialised, sparse, complex, quantised, on another
            device, a tensor subclass), two tensors overlap in memory, or the module has extra state that is
            no tensor.
    """

    def __init__(self, module: nn.Module, *, grads: bool = True):
        self.module = module
        tensors = row_tensors(module)
        for name, tensor in tensors.items():
            refuse_foreign(name, tensor, next(iter(tensors.values())).device)
        refuse_overlaps(tensors)
        self.layout = Layout.pack(tensor_spec(name, tensor) for name, tensor in tensors.items())
        self._tensors = tensors
        self._allocate(next(iter(tensors.values())).device)
        with torch.no_grad():
            for name, view in self._views.items():
                view.copy_(tensors[name].detach())
        self._point_tensors()
        self._gradients = self._make_gradients() if grads else None

    # Construction

    def _allocate(self, device: torch.device) -> None:
        """Allocates the row, with its longest section of parameters on a cache line."""
        start, _ = max(self._parameter_spans().values(), key=lambda span: span[1] - span[0])
        widest = BY_NAME[next(iter(self.layout)).dtype].itemsize
        allocation = torch.empty(self.layout.nbytes + _ALIGNMENT, dtype=torch.uint8, device=device)
        shift = -(allocation.data_ptr() + start) % _ALIGNMENT // widest * widest
        self._row = allocation[shift : shift + self.layout.nbytes]
        self._sections: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        for entry in self.layout:
            if entry.dtype not in self._sections:
                starts[entry.dtype] = entry.offset
                same = [other for other in self.layout if other.dtype == entry.dtype]
                end = same[-1].offset + same[-1].nbytes
                self._sections[entry.dtype] = own_storage(
                    self._row[entry.offset : end].view(getattr(torch, entry.dtype))
                )
            self._views[entry.name] = entry_view(self._sections[entry.dtype], entry, starts[entry.dtype])

    def _make_gradients(self) -> Gradients:
        parameters = {
            name: tensor for name, tensor in self._tensors.items() if isinstance(tensor, nn.Parameter)
        }
        return Gradients(parameters, self.layout, self._parameter_spans(), self._row.device)

    def _point_tensors(self) -> None:
        for name, tensor in self._tensors.items():
            tensor.data = self._views[name]

    def _parameter_spans(self) -> dict[str, tuple[int, int]]:
        """First and last byte of the parameters of each element type."""
        spans: dict[str, tuple[int, int]] = {}
        for entry in self.layout:
            if isinstance(self._tensors[entry.name], nn.Parameter):
                start, _ = spans.get(entry.dtype, (entry.offset, 0))
                spans[entry.dtype] = (start, entry.offset + entry.nbytes)
        return spans

    # Rows

    @property
    def device(self) -> torch.device:
        """Where the row is."""
        return self._row.device

    @property
    def row(self) -> Tensor:
        """All parameters and buffers: uint8 of `layout.nbytes`, the memory of the module itself.

        Raises:
            InputError: the module's tensors are no longer in the row.
        """
        self.check()
        return self._row

    def views(self) -> dict[str, Tensor]:
        """The tensors of the row by name, in the order of the layout, outside autograd.

        Raises:
            InputError: the module's tensors are no longer in the row.
        """
        self.check()
        return dict(self._views)

    def parameters_row(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All parameters of `dtype`, frozen ones included, as a 1-D tensor: the memory of the module itself.

        Raises:
            InputError: no parameter is of that type, or the module's tensors are no longer in the row.
        """
        self.check()
        name = dtype_name(dtype)
        spans = self._parameter_spans()
        if name not in spans:
            raise InputError(f"the arena holds no parameter of type {name}, only {', '.join(spans)}")
        start, end = spans[name]
        return self._row[start:end].view(dtype)

    def grads_row(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The gradients of `parameters_row(dtype)`, element by element; zero for frozen parameters.

        Raises:
            InputError: there is no such row, or a gradient is no longer in it (set to None, say).
        """
        if self._gradients is None:
            raise InputError("the arena was made with grads=False")
        return self._gradients.row(dtype)

    def zero_grad(self) -> None:
        """Fills the gradients with zeros, and puts back those that were taken out or set to None.

        Raises:
            InputError: the module's tensors are no longer in the row, or it was made with `grads=False`.
        """
        if self._gradients is None:
            raise InputError("the arena was made with grads=False")
        self._gradients.zero()
        if not self._gradients.in_place():
            self.check()
            self._gradients.attach()

    # Integrity

    def problem(self) -> str | None:
        """What took tensors out of the row since it was made, as one sentence; None if nothing did."""
        try:
            current = row_tensors(self.module)
        except InputError as error:
            return str(error)
        for name in current.keys() - self._tensors.keys():
            return f"{name} was added to the module after the arena was made; make the arena again"
        for name, tensor in self._tensors.items():
            view = self._views[name]
            if name not in current:
                return f"{name} was removed from the module after the arena was made; make the arena again"
            if current[name] is not tensor:
                return f"{name} was replaced after the arena was made; make the arena again"
            if not same_view(tensor, view):
                return (
                    f"{name} is no longer in the arena's row (moving or casting the module, or assigning "
                    ".data, does that); move with arena.to(device), or make the arena again"
                )
        return None

    def is_intact(self) -> bool:
        """Whether the module's parameters and buffers still are exactly the views of the row."""
        return self.problem() is None

    def check(self) -> None:
        """Refuses to go on with a broken arena.

        Raises:
            InputError: the module's tensors are no longer in the row; says which and what to do.
        """
        problem = self.problem()
        if problem is not None:
            raise InputError(problem)

    # Copies

    def row_copy(self, out: Tensor | None = None) -> Tensor:
        """A copy of the row, to keep the best weights of a run, say.

        Args:
            out: uint8 of `layout.nbytes` on any device, to be overwritten; None for a new one beside the row.

        Returns:
            `out`, or the new tensor.

        Raises:
            InputError: `out` does not fit, or the module's tensors are no longer in the row.
        """
        row = self.row
        if out is None:
            return row.clone()
        self._refuse_other_row(out)
        return out.copy_(row)

    def restore(self, row: Tensor) -> None:
        """Fills the module from a row, such as `row_copy` gives, of the same layout and on any device.

        Raises:
            InputError: `row` does not fit, or the module's tensors are no longer in the row.
        """
        self._refuse_other_row(row)
        with torch.no_grad():
            self.row.copy_(row)
        self._mark_changed()

    def load(self, state_dict: Mapping[str, Any]) -> None:
        """Copies a state dict into the row; all names must match, as in `Module.load_state_dict`.

        Raises:
            InputError: names or shapes differ, or the module's tensors are no longer in the row.
        """
        self.check()
        try:
            self.module.load_state_dict(dict(state_dict), strict=True)
        except RuntimeError as error:
            raise InputError(f"the state dict does not fit the arena's module: {error}") from error
        self.check()

    def to(self, device: torch.device | str | int) -> Arena:
        """Moves the row, the gradients and the rest of the module to a device; returns the arena itself.

        Raises:
            InputError: the module's tensors are no longer in the row.
        """
        source = self.row
        device = torch.empty(0, device=device).device
        if device != source.device:
            self._allocate(device)
            self._row.copy_(source)
            grads = {name: tensor.grad for name, tensor in self._tensors.items()}
            for tensor in self._tensors.values():
                tensor.grad = None
            self._point_tensors()
            for name, grad in grads.items():
                self._tensors[name].grad = None if grad is None else grad.to(device)
            if self._gradients is not None:
                self._gradients = self._make_gradients()
        self.module.to(device)  # what is not in the row: buffers that are not persistent
        self.check()
        return self

    def _refuse_other_row(self, row: Tensor) -> None:
        if row.dtype != torch.uint8 or row.shape != (self.layout.nbytes,):
            raise InputError(
                f"expected a row of {self.layout.nbytes} bytes (uint8), got {dtype_name(row.dtype)} of shape "
                f"{list(row.shape)}"
            )

    def _mark_changed(self) -> None:
        # Assigning .data leaves a tensor its own version counter, which a write to the row does not move.
        torch.autograd.graph.increment_version(list(self._tensors.values()))
