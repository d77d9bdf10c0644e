"""A GradScaler that leaves the search for what is not finite to the optimizer's own pass."""

from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from ratfast.optim.base import FusedOptimizer


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler`, which saves a pass over all gradients when it steps an optimizer of `ratfast.optim`.

    torch's own looks through the gradients for what is not finite before an optimizer that unscales by itself is
    stepped. Here the optimizer finds that out with the norm of its gradients, which it takes anyway if it clips: two
    launches in all. Anything else, other optimizers and gradients that `unscale_` has divided already among them, is
    as in torch. So are the arguments.
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Steps the optimizer unless a gradient is not finite; without waiting for the device.

        Args:
            optimizer: whose parameters have gradients of a scaled loss.
            *args: for `optimizer.step`.
            **kwargs: for `optimizer.step`.

        Returns:
            What `optimizer.step` returned.
        """
        ours = (
            self._enabled and isinstance(optimizer, FusedOptimizer) and "closure" not in kwargs and not args
        )
        if not ours:
            return super().step(optimizer, *args, **kwargs)
        self._check_scale_growth_tracker("step")
        state = self._per_optimizer_states[id(optimizer)]
        if state["stage"] is not OptState.READY:
            return super().step(optimizer, **kwargs)
        given = getattr(optimizer, "grad_scale", None)
        optimizer.grad_scale = self._scale if given is None else self._scale * given
        try:
            result = optimizer.step(**kwargs)
        finally:
            del optimizer.grad_scale
        # `update` reads it before the next step writes it anew.
        state["found_inf_per_device"] = optimizer.found_inf_per_device()
        state["stage"] = OptState.STEPPED
        return result
