"""Numbers that steps and norms read on the device of the tensors, and the memory that they work in there."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the workspace of CUDA kernels, float64 numbers: kWorkspace of csrc/cuda/launch.h.
WORKSPACE = 2049


def step_workspace(device: torch.device | str) -> Tensor:
    """Memory that a step or a norm works in, for reuse by those that follow each other on one stream.

    Args:
        device: of the parameters.

    Returns:
        float64 zeros, which each operation leaves usable for the next.
    """
    return torch.zeros(WORKSPACE, dtype=torch.float64, device=device)


def check_number(
    name: str, number: Tensor | None, device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """Refuses a tensor that is not one number on a device, of a floating-point type, or of `dtype`."""
    if number is None:
        return
    if number.numel() != 1 or number.layout != torch.strided:
        raise ValueError(f"{name} has shape {tuple(number.shape)}, expected one number")
    if number.device != device:
        raise ValueError(f"{name} is on {number.device}, but the tensors on {device}")
    if number.dtype != dtype if dtype is not None else number.dtype not in (torch.float32, torch.float64):
        expected = "float32 or float64" if dtype is None else str(dtype).removeprefix("torch.")
        raise TypeError(f"{name} is {str(number.dtype).removeprefix('torch.')}, expected {expected}")


def as_number(name: str, value: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """A number as such, or as a tensor that is to be read on its device."""
    if not isinstance(value, Tensor):
        return float(value), None
    if value.device.type == "cpu" and (
        device.type != "cpu" or value.dtype not in (torch.float32, torch.float64)
    ):
        return float(value), None
    check_number(name, value, device)
    return 0.0, value.detach()


def workspace_on(workspace: Tensor | None, device: torch.device) -> Tensor | None:
    """The workspace of an operation on a device: a new one where CUDA kernels need one and none is given.

    Raises:
        ValueError: it does not come from `step_workspace` for that device.
    """
    if device.type != "cuda":
        return None
    if workspace is None:
        return step_workspace(device)
    if workspace.device != device or workspace.dtype != torch.float64 or workspace.numel() != WORKSPACE:
        raise ValueError("workspace does not come from step_workspace for the tensors' device")
    return workspace
