"""The floor that memory-bound operations are held against: what a plain copy reaches on the same device."""

from __future__ import annotations

import time

import torch


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
