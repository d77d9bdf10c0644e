"""The machine a recipe runs on: device, precision, threads, and an allocator that keeps what it has."""

from __future__ import annotations

import ctypes

import torch

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
