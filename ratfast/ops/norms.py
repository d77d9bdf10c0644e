"""The norm of the gradients, which goes before a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import reference
from ratfast.ops.checks import check_alike
from ratfast.ops.numbers import check_number, workspace_on
from ratfast.ops.registration import call, check_cuda, define, increment_versions


def _fake_gradient_norm_(grads: list[Tensor], *tensors: object, **options: object) -> None:
    check_cuda(grads)


define(
    "gradient_norm_(Tensor[] grads, Tensor(a!) norm, Tensor(b!) multiplier, Tensor(c!) found_inf, "
    "Tensor(d!)? workspace, Tensor? grad_scale, float max_norm, Tensor[]? tables=None) -> ()",
    reference.gradient_norm_,
    _fake_gradient_norm_,
)


def gradient_norm_(
    grads: Sequence[Tensor],
    norm: Tensor,
    multiplier: Tensor,
    found_inf: Tensor,
    *,
    grad_scale: Tensor | None = None,
    max_norm: float = math.inf,
    workspace: Tensor | None = None,
    tables: Sequence[Tensor] = (),
) -> None:
    """The norm of all gradients together, and what a step needs to unscale and to clip them; all on their device.

    `norm = sqrt(sum of squares) / grad_scale`; `multiplier = min(1, max_norm / (norm + 1e-6)) / grad_scale`, as
    `torch.nn.utils.clip_grad_norm_` has it; `found_inf` is 1 where the norm is not finite, else 0. Squares are
    summed in float64, on the CPU in an order that depends on the sizes alone, on a CUDA device on the kind of device
    too. Without gradients the norm is 0.

    Args:
        grads: T dense tensors of one device, of any shapes and floating-point types.
        norm: one float64 number, overwritten.
        multiplier: one float64 number, overwritten.
        found_inf: one float32 number, overwritten.
        grad_scale: one number that the loss was multiplied by, as `torch.amp.GradScaler` keeps it; None for 1.
        max_norm: infinity does not clip.
        workspace: from `step_workspace`, for CUDA devices; made for each call if None.
        tables: from `step_table`; their gradients count too. If there are no `grads`, nothing is checked again.

    Raises:
        ValueError: a tensor on another device, not dense, or not of one number.
        TypeError: an element type or a kind of tensor without a norm.
    """
    if tables and not grads:  # nothing that was not checked before
        results = [norm, multiplier, found_inf]
        torch.ops.ratfast.gradient_norm_.default([], *results, workspace, grad_scale, max_norm, tables)
        increment_versions(results)
        return
    flat = list(grads)
    device = flat[0].device if flat else norm.device
    for name, number, dtype in (
        ("norm", norm, torch.float64),
        ("multiplier", multiplier, torch.float64),
        ("found_inf", found_inf, torch.float32),
        ("grad_scale", grad_scale, None),
    ):
        check_number(name, number, device, dtype)
    if math.isnan(max_norm) or max_norm < 0:
        raise ValueError(f"max_norm is {max_norm}, expected a number that is not negative")
    results = [norm, multiplier, found_inf]
    if not flat:
        with torch.no_grad():
            reference.gradient_norm_([], *results, grad_scale=grad_scale, max_norm=float(max_norm))
        return
    options = {
        "workspace": workspace_on(workspace, device),
        "grad_scale": grad_scale,
        "max_norm": float(max_norm),
        "tables": list(tables) or None,
    }
    call(
        torch.ops.ratfast.gradient_norm_,
        [flat, *results],
        options,
        flat,
        lambda: check_alike(len(flat), grads=flat),
    )
    increment_versions(results)
