"""Whether parameters and gradients still are where they were, natively where that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ratfast import native


class Guard(Protocol):
    """Remembers where parameters and their gradients are, as the class `Guard` of `ratfast.native`'s core does."""

    def grads(self, params: list[Tensor]) -> list[Tensor | None] | None:
        """The gradients, None where there is none; None if anything is not as it was."""

    def keep(
        self, owner: Tensor, address: int, count: int, places: dict[int, int], states: list[Tensor]
    ) -> None:
        """From now on writes where gradients are into a step's table, and watches the states."""


def keep_table(
    guard: Guard, table: Tensor, count: int, places: Mapping[int, int], states: Sequence[Tensor]
) -> bool:
    """Has a guard write where gradients are into the table of a step, whenever it is asked for them.

    Args:
        guard: over the parameters.
        table: from `ratfast.ops.step_table`.
        count: how many tensors are stepped.
        places: which of them is stepped with the gradient of which parameter, for those that are not pinned.
        states: tensors in the table that have to stay where they are.

    Returns:
        Whether it does.
    """
    if isinstance(guard, PlainGuard):
        return not places
    guard.keep(table, table.data_ptr(), count, dict(places), list(states))
    return True


def make_guard(params: Sequence[Tensor], pinned: Sequence[bool]) -> Guard:
    """A guard over parameters as they are now.

    Args:
        params: with their gradients.
        pinned: for each, whether its gradient has to stay the same object in the same place, or just of the same
            shape, strides, element type and device.
    """
    core = native.load_core()
    if core is not None:
        try:
            return core.Guard(list(params), list(pinned))
        except (
            TypeError,
            RuntimeError,
            BufferError,
        ):  # of an older torch, or on a device that has no addresses
            pass
    return PlainGuard(params, pinned)


class PlainGuard:
    """The same in Python, which takes several times as long."""

    def __init__(self, params: Sequence[Tensor], pinned: Sequence[bool]):
        self._params = list(params)
        self._pinned = list(pinned)
        self._kept = [param.grad if pin else None for param, pin in zip(params, pinned, strict=True)]
        self._place = self._places([param.grad for param in params])

    def grads(self, params: list[Tensor]) -> list[Tensor | None] | None:
        """The gradients, None where there is none; None if anything is not as it was."""
        if list(map(id, params)) != list(map(id, self._params)):
            return None
        grads = [param.grad for param in params]
        if any(
            pin and grad is not kept for grad, pin, kept in zip(grads, self._pinned, self._kept, strict=True)
        ):
            return None
        return grads if self._places(grads) == self._place else None

    def _places(self, grads: Sequence[Tensor | None]) -> list[object]:
        found: list[object] = [(param.data_ptr(), *_kind(param)) for param in self._params]
        for grad, pin in zip(grads, self._pinned, strict=True):
            found.append(None if grad is None else (grad.data_ptr() if pin else None, *_kind(grad)))
        return found


def _kind(tensor: Tensor) -> tuple[object, ...]:
    if tensor.layout != torch.strided:
        return (tensor.layout,)
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device
