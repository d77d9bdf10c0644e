"""The native operators on plain torch: the fallback where no native library loads, the oracle of the tests.

Arguments are those of the operators `ratfast::mix_` and `ratfast::adam_` (see `ratfast.ops` for their checked
wrappers): flat lists of dense tensors. Nothing here checks them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The type that sums over `tensors` are held in: float64 if any of them is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def mix_(outputs: list[Tensor], sources: list[Tensor], weights: Tensor) -> None:
    """Writes K weighted sums of N models, each of T tensors.

    Args:
        outputs: K * T tensors, model-major; any of them may be the memory of one source.
        sources: N * T tensors, model-major; element types may differ.
        weights: (K, N) float64 on the CPU.
    """
    num_outputs, num_sources = weights.shape
    num_tensors = len(sources) // num_sources
    rows = weights.tolist()
    for t in range(num_tensors):
        models = sources[t::num_tensors]
        targets = outputs[t::num_tensors]
        dtype = accumulation_dtype(*models, *targets)
        sums = [torch.zeros_like(models[0], dtype=dtype) for _ in range(num_outputs)]
        for n, model in enumerate(models):
            wide = model.to(dtype)
            for k in range(num_outputs):
                sums[k].add_(wide, alpha=rows[k][n])
        # Only now, since a target may be the memory of a source.
        for target, total in zip(targets, sums, strict=True):
            target.copy_(total)


def adam_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    decoupled: bool,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """One step of Adam (arXiv 1412.6980) or, if `decoupled`, of AdamW (arXiv 1711.05101), as in torch.optim.

    The arithmetic runs in float32, or in float64 where a tensor of the parameter is float64; each tensor
    keeps its own element type.

    Args:
        params: T tensors, updated.
        grads: T tensors.
        exp_avgs: T tensors, updated.
        exp_avg_sqs: T tensors, updated.
        max_exp_avg_sqs: T tensors, updated, if `amsgrad`; else empty.
        steps: (T,) float32 on the CPU: the number of this step, 1 for the first.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: L2 penalty, or the rate of decay if `decoupled`.
        eps: added to the denominator.
        decoupled: AdamW's weight decay.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend.
    """
    for t, (param, grad, exp_avg, exp_avg_sq) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    ):
        states = [exp_avg, exp_avg_sq] + ([max_exp_avg_sqs[t]] if amsgrad else [])
        dtype = accumulation_dtype(param, grad, *states)
        step = float(steps[t])
        p = param.to(dtype)
        g = -grad.to(dtype) if maximize else grad.to(dtype)
        if decoupled:
            p = p * (1 - lr * weight_decay)
        elif weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        m = torch.lerp(exp_avg.to(dtype), g, 1 - beta1)
        v = exp_avg_sq.to(dtype).mul(beta2).addcmul_(g, g, value=1 - beta2)
        largest = torch.maximum(max_exp_avg_sqs[t].to(dtype), v) if amsgrad else v
        denominator = (largest.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
        param.copy_(p.addcdiv(m, denominator, value=-lr / (1 - beta1**step)))
        for state, value in zip(states, (m, v, largest), strict=False):
            state.copy_(value)
