"""The pass before the step: the norm of all gradients, and what unscales, clips or skips, without asking the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ratfast import ops


@dataclass(frozen=True)
class Factor:
    """What a step multiplies the gradients of one device by, and whether it is skipped.

    Attributes:
        multiplier: one number on the device; None for 1.
        found_inf: one number on the device, not 0 if the step is to be skipped; None if it is not.
    """

    multiplier: Tensor | None = None
    found_inf: Tensor | None = None


PLAIN = Factor()
"""A step on the gradients as they are."""


class _Numbers:
    """Results of the norm pass on one device, written anew at each step."""

    def __init__(self, device: torch.device):
        self.norm, self.multiplier = torch.zeros(2, dtype=torch.float64, device=device)
        self.found_inf = torch.zeros((), dtype=torch.float32, device=device)
        self.workspace = ops.step_workspace(device)
        self.factor = Factor(self.multiplier, self.found_inf)


class Scaling:
    """Unscales gradients by a loss scale, clips them to a global norm, and skips steps that are not finite.

    Attributes:
        norm: of the unscaled gradients at the latest step, one float64 number on a device; None before.
        found_inf: by device, whether the latest step found what is not finite.
    """

    def __init__(self) -> None:
        self.norm: Tensor | None = None
        self.found_inf: dict[torch.device, Tensor] = {}
        self._numbers: dict[torch.device, _Numbers] = {}

    def workspace(self, device: torch.device) -> Tensor:
        """Memory for the operations on a device."""
        return self._on(device).workspace

    def factors(
        self,
        grads: Mapping[torch.device, Sequence[Tensor]],
        *,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        max_norm: float | None,
        tables: Mapping[torch.device, Sequence[Tensor]] = MappingProxyType({}),
    ) -> dict[torch.device, Factor]:
        """What the steps on each device need.

        The norm is taken where there is something to clip, or a scale that nobody has checked the gradients for.

        Args:
            grads: gradients by device.
            grad_scale: what the loss was multiplied by.
            found_inf: whether a GradScaler found gradients that are not finite; None if it did not look.
            max_norm: of all gradients together.
            tables: by device, of steps: their gradients.
        """
        if max_norm is None and (grad_scale is None or found_inf is not None):
            return {device: _given(device, grad_scale, found_inf) for device in (*grads, *tables)}
        results = {}
        devices = dict.fromkeys((*grads, *tables))
        for device in devices:
            numbers = results[device] = self._on(device)
            ops.gradient_norm_(
                grads.get(device, ()),
                numbers.norm,
                numbers.multiplier,
                numbers.found_inf,
                grad_scale=None if grad_scale is None else grad_scale.to(device),
                max_norm=math.inf if max_norm is None or len(devices) > 1 else max_norm,
                workspace=numbers.workspace,
                tables=tables.get(device, ()),
            )
        if results:
            self.norm = next(iter(results.values())).norm
        if len(results) > 1:
            self.norm = _combine(list(results.values()), math.inf if max_norm is None else max_norm)
        for device, numbers in results.items():
            if found_inf is not None:
                numbers.found_inf.add_(found_inf.to(device))
        self.found_inf = {device: numbers.found_inf for device, numbers in results.items()}
        return {device: Factor(numbers.multiplier, numbers.found_inf) for device, numbers in results.items()}

    def _on(self, device: torch.device) -> _Numbers:
        if device not in self._numbers:
            self._numbers[device] = _Numbers(device)
        return self._numbers[device]


def _given(device: torch.device, grad_scale: Tensor | None, found_inf: Tensor | None) -> Factor:
    """What a GradScaler that has checked the gradients hands over."""
    return Factor(
        None if grad_scale is None else grad_scale.to(device, torch.float64).reciprocal(),
        None if found_inf is None else found_inf.to(device, torch.float32),
    )


def _combine(results: list[_Numbers], max_norm: float) -> Tensor:
    """Makes one norm of those of several devices, and one decision; returns the norm."""
    home = results[0].norm.device
    norm = torch.stack([numbers.norm.to(home) for numbers in results]).square().sum().sqrt()
    clip = (max_norm / (norm + 1e-6)).clamp(max=1.0) if math.isfinite(max_norm) else torch.ones_like(norm)
    found = (~norm.isfinite()).float()
    for numbers in results:
        numbers.multiplier.mul_(clip.to(numbers.multiplier.device))  # it was the inverse scale
        numbers.found_inf.copy_(found)
    return norm
