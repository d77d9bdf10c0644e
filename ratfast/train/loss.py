"""The loss since the last evaluation, kept where it is computed: the host does not wait for it."""

from __future__ import annotations

import math

import torch


class RunningLoss:
    """A sum of losses on a device, looked at from the host without waiting.

    Args:
        device: where losses are.

    Attributes:
        sum: () float32, to be added to.
        count: how many were added.
    """

    def __init__(self, device: torch.device) -> None:
        self.sum = torch.zeros((), device=device)
        self.count = 0
        on_cuda = device.type == "cuda"
        self._read = torch.zeros((), pin_memory=True) if on_cuda else self.sum
        self._arrival = torch.cuda.Event() if on_cuda else None
        self._reading = False

    def mean(self) -> float:
        """The mean of what was added; waits for it."""
        return float(self.sum) / self.count

    def clear(self) -> None:
        """Begins anew."""
        self.sum.zero_()
        self.count = 0

    def is_finite(self) -> bool:
        """Whether the sum is a finite number; waits for it."""
        return math.isfinite(float(self.sum))

    def seems_finite(self) -> bool:
        """The same without waiting: of the latest sum that has reached the host, a few updates old on CUDA."""
        if self._arrival is None:
            return self.is_finite()
        if self._reading:
            if not self._arrival.query():
                return True
            self._reading = False
            if not math.isfinite(float(self._read)):
                return False
        self._read.copy_(self.sum, non_blocking=True)
        self._arrival.record()
        self._reading = True
        return True
