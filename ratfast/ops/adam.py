"""One step of Adam without anything alongside; `ratfast.ops.steps` takes its place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast import reference
from ratfast.ops.checks import check_alike
from ratfast.ops.registration import call, check_cuda, define, increment_versions


def _fake_adam_(params: list[Tensor], *tensors: object, **scalars: object) -> None:
    check_cuda(params)


define(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor steps, *, float lr, float beta1, float beta2, float weight_decay, "
    "float eps, bool decoupled, bool amsgrad, bool maximize) -> ()",
    reference.adam_,
    _fake_adam_,
)


def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Tensor | Sequence[float],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    decoupled: bool = False,
    amsgrad: bool = False,
    maximize: bool = False,
) -> None:
    """One step of Adam (arXiv 1412.6980) or AdamW (arXiv 1711.05101) over T tensors, as torch.optim does it.

    The arithmetic runs in float32, or in float64 where a tensor of that t is float64.

    Args:
        params: T dense tensors, updated.
        grads: T tensors; like all lists below, with the shapes and strides of `params`.
        exp_avgs: T tensors, updated; the states of one t share one element type, which may differ from the
            parameter's.
        exp_avg_sqs: T tensors, updated.
        max_exp_avg_sqs: T tensors, updated, if `amsgrad`; else empty.
        steps: T numbers of this step, 1 for the first.
        lr: learning rate.
        betas: decays of the first and second moment.
        weight_decay: L2 penalty, or the rate of decay if `decoupled`.
        eps: added to the denominator.
        decoupled: AdamW's weight decay instead of Adam's.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend instead of descend.

    Raises:
        ValueError: lists, shapes, strides or devices do not fit together.
        TypeError: an element type or a kind of tensor that cannot be stepped.
    """
    num_tensors = len(params)
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if amsgrad:
        lists["max_exp_avg_sqs"] = max_exp_avg_sqs
    elif len(max_exp_avg_sqs) != 0:
        raise ValueError("max_exp_avg_sqs must be empty unless amsgrad is set")
    for name, tensors in lists.items():
        if len(tensors) != num_tensors:
            raise ValueError(f"{name} has {len(tensors)} tensors, but params has {num_tensors}")
    numbers = torch.as_tensor(steps, dtype=torch.float32, device="cpu")
    if numbers.shape != (num_tensors,):
        raise ValueError(
            f"steps has shape {tuple(numbers.shape)}, but {num_tensors} params need ({num_tensors},)"
        )
    if num_tensors == 0:
        return
    flat = {name: list(tensors) for name, tensors in lists.items()}
    states = [flat[name] for name in lists if name not in ("params", "grads")]

    def check() -> None:
        check_alike(num_tensors, **flat)
        for t, kinds in enumerate(zip(*states, strict=True)):
            if any(state.dtype != kinds[0].dtype for state in kinds):
                raise TypeError(f"exp_avgs[{t}] and the other states of params[{t}] differ in element type")

    arguments = [flat[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")]
    arguments += [flat.get("max_exp_avg_sqs", []), numbers.detach().contiguous()]
    options = {
        "lr": float(lr),
        "beta1": float(betas[0]),
        "beta2": float(betas[1]),
        "weight_decay": float(weight_decay),
        "eps": float(eps),
        "decoupled": decoupled,
        "amsgrad": amsgrad,
        "maximize": maximize,
    }
    call(torch.ops.ratfast.adam_, arguments, options, list(itertools.chain(*flat.values())), check)
    increment_versions([*flat["params"], *itertools.chain(*states)])
