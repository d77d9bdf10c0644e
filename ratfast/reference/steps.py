"""Optimizer steps and the norm of the gradients, on plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ratfast.reference.averaging import accumulation_dtype

# Called with a parameter, its scaled gradient, its states, all in the arithmetic's type, and the number of this step;
# returns the new parameter and states.
_Update = Callable[[Tensor, Tensor, list[Tensor], float], tuple[Tensor, list[Tensor]]]


def adam_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    averages: list[Tensor],
    copies: list[Tensor],
    steps: Tensor,
    *,
    lr: float = 0.0,
    lr_tensor: Tensor | None = None,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    decoupled: bool,
    amsgrad: bool,
    maximize: bool,
    table: None = None,
    **extras: object,
) -> None:
    """One step of Adam; arguments as in `ratfast.ops.adam_step_`."""
    lr = lr if lr_tensor is None else float(lr_tensor)

    def update(p: Tensor, g: Tensor, states: list[Tensor], step: float) -> tuple[Tensor, list[Tensor]]:
        if decoupled:
            p = p * (1 - lr * weight_decay)
        elif weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        m = torch.lerp(states[0], g, 1 - beta1)
        v = states[1].mul(beta2).addcmul_(g, g, value=1 - beta2)
        largest = torch.maximum(states[2], v) if amsgrad else v
        denominator = (largest.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
        return p.addcdiv(m, denominator, value=-lr / (1 - beta1**step)), [m, v, largest][: len(states)]

    states = [exp_avgs, exp_avg_sqs, max_exp_avg_sqs] if amsgrad else [exp_avgs, exp_avg_sqs]
    _step(params, grads, states, averages, copies, steps, update, maximize=maximize, **extras)


def sgd_step_(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    averages: list[Tensor],
    copies: list[Tensor],
    steps: Tensor,
    *,
    lr: float = 0.0,
    lr_tensor: Tensor | None = None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    table: None = None,
    **extras: object,
) -> None:
    """One step of stochastic gradient descent; arguments as in `ratfast.ops.sgd_step_`."""
    lr = lr if lr_tensor is None else float(lr_tensor)

    def update(p: Tensor, g: Tensor, states: list[Tensor], step: float) -> tuple[Tensor, list[Tensor]]:
        if weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        if momentum != 0:
            buffer = g.clone() if step == 1 else states[0].mul(momentum).add_(g, alpha=1 - dampening)
            g, states = g.add(buffer, alpha=momentum) if nesterov else buffer, [buffer]
        return p.add(g, alpha=-lr), states

    states = [momentum_buffers] if momentum != 0 else []
    _step(params, grads, states, averages, copies, steps, update, maximize=maximize, **extras)


def _step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    averages: list[Tensor],
    copies: list[Tensor],
    steps: Tensor,
    update: _Update,
    *,
    maximize: bool,
    workspace: Tensor | None = None,
    multiplier: Tensor | None = None,
    found_inf: Tensor | None = None,
    average_weight: float = 0.0,
    average_weight_tensor: Tensor | None = None,
    zero_grads: bool = False,
) -> None:
    """Steps every tensor by `update`, with what is asked for alongside."""
    if found_inf is None or float(found_inf) == 0:
        factor = (-1.0 if maximize else 1.0) * (1.0 if multiplier is None else float(multiplier))
        weight = average_weight if average_weight_tensor is None else float(average_weight_tensor)
        steps.add_(1)
        for t, (param, grad, step) in enumerate(zip(params, grads, steps.tolist(), strict=True)):
            kept = [tensors[t] for tensors in states]
            dtype = accumulation_dtype(param, grad, *kept, *averages[t : t + 1], *copies[t : t + 1])
            new, new_states = update(
                param.to(dtype), grad.to(dtype) * factor, [state.to(dtype) for state in kept], step
            )
            param.copy_(new)
            for state, value in zip(kept, new_states, strict=True):
                state.copy_(value)
            if averages:
                stored = param.to(dtype)
                moved = stored if weight == 1 else torch.lerp(averages[t].to(dtype), stored, weight)
                averages[t].copy_(moved)
            if copies:
                copies[t].copy_(new)
    if zero_grads:
        for grad in grads:
            grad.zero_()


def gradient_norm_(
    grads: list[Tensor],
    norm: Tensor,
    multiplier: Tensor,
    found_inf: Tensor,
    *,
    workspace: Tensor | None = None,
    grad_scale: Tensor | None = None,
    max_norm: float,
    tables: None = None,
) -> None:
    """The gradients' norm, and what unscales and clips them; arguments as in `ratfast.ops.gradient_norm_`."""
    total = torch.zeros((), dtype=torch.float64, device=norm.device)
    for grad in grads:
        total += grad.to(torch.float64).square().sum()
    inverse = 1.0 if grad_scale is None else grad_scale.reshape(()).to(torch.float64).reciprocal()
    length = total.sqrt() * inverse
    clip = torch.ones_like(length) if math.isinf(max_norm) else (max_norm / (length + 1e-6)).clamp(max=1.0)
    norm.fill_(length)
    multiplier.fill_(clip * inverse)
    found_inf.fill_((~length.isfinite()).to(torch.float32))


def step_table(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    averages: list[Tensor],
    copies: list[Tensor],
) -> Tensor:
    """No table, of no bytes: here lists are stepped tensor by tensor."""
    return torch.empty(0, dtype=torch.uint8)
