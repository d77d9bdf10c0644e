"""What measurements share: the device, a clock, and what a plain copy reaches, the floor of memory-bound work."""

from __future__ import annotations

import os
import time

import pytest
import torch


def device_of(kind: str) -> torch.device:
    """A device for a test; one on "cuda" is skipped where there is none, or fails if RATFAST_REQUIRE_CUDA is 1."""
    if kind == "cuda" and not torch.cuda.is_available():
        if os.environ.get("RATFAST_REQUIRE_CUDA") == "1":
            pytest.fail("no CUDA device, and RATFAST_REQUIRE_CUDA=1")
        pytest.skip("no CUDA device")
    return torch.device(kind)


def synchronized_clock() -> float:
    """Seconds, read when the GPU, if one is in use, has done everything asked of it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def copy_bandwidth(device: torch.device, megabytes: int = 512, repetitions: int = 10) -> float:
    """Bandwidth of `Tensor.copy_`, bytes read plus bytes written per second, the best of some repetitions.

    Args:
        device: where to copy.
        megabytes: size of the source, well beyond every cache.
        repetitions: how often to copy; the first warms up.
    """
    source = torch.rand(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    per_round = 10 if device.type == "cuda" else 1
    best = float("inf")
    for _ in range(repetitions):
        start = synchronized_clock()
        for _ in range(per_round):
            target.copy_(source)
        best = min(best, (synchronized_clock() - start) / per_round)
    return 2 * source.nbytes / best
