"""The machine a recipe runs on: device, precision, threads, and an allocator that keeps what it has."""

from __future__ import annotations

import ctypes
import os

import torch

from ratfast.config import Recipe
from ratfast.errors import InputError

# Parameters of glibc's mallopt, from <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def find_device(name: str) -> torch.device:
    """The device called `name`; `"auto"` is CUDA where there is one, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither cpu nor cuda")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"this machine has {torch.cuda.device_count()} CUDA devices")
    except RuntimeError as error:
        raise InputError(
            f"the device {name!r} cannot be used ({error}), expected auto, cpu, cuda or cuda:N"
        ) from error
    return device


def find_precision(name: str, device: torch.device) -> str:
    """`"float32"` or `"bfloat16"`; `"auto"` is bfloat16 on CUDA and float32 on the CPU."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return name


def find_workers(recipe: Recipe, device: torch.device) -> int:
    """How many processes train at a time: as the recipe says, or one for each GPU that it leaves to choose."""
    if recipe.train.workers is not None:
        return recipe.train.workers
    if recipe.train.device == "auto" and device.type == "cuda":
        return torch.cuda.device_count()
    return 1


def gpus_for_workers(device: torch.device) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that workers take in turn: the one GPU that was asked for, or each there is."""
    if device.type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else []
    names = names or [str(index) for index in range(torch.cuda.device_count())]
    return names if device.index is None else [names[device.index]]


def share_of_processors(workers: int) -> int:
    """Threads of each of so many workers, so that together they use the processors once."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def prepare(device: torch.device, threads: int | None) -> None:
    """Sets threads, and keeps freed memory in the process while training on the CPU.

    A step frees and asks for the same hundreds of megabytes of activations again; glibc would return them to the
    kernel each time, and faulting them in again costs more than some of the arithmetic done on them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            # Older versions of glibc refuse, with 0, more than 32 MiB.
            _ = libc.mallopt(_M_MMAP_THRESHOLD, 2**30) or libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
