"""Optimizer steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratfast import reference
from ratfast.ops.checks import check_alike, check_apart
from ratfast.ops.numbers import as_number, check_number, workspace_on
from ratfast.ops.registration import call, check_cuda, define, increment_versions

# In place of lists that are in a table.
_NOTHING: tuple[list[Tensor], ...] = ([],) * 7


def _fake_step(params: list[Tensor], *tensors: object, **options: object) -> None:
    check_cuda(params)


_EXTRAS = (
    "Tensor(x!)[] averages, Tensor(y!)[] copies, Tensor(z!) steps, Tensor(w!)? workspace, "
    "Tensor? multiplier, Tensor? found_inf, Tensor? lr_tensor, Tensor? average_weight_tensor, float lr, "
    "float average_weight, bool zero_grads, float weight_decay, bool maximize"
)
define(
    "adam_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    f"Tensor(e!)[] max_exp_avg_sqs, {_EXTRAS}, float beta1, float beta2, float eps, bool decoupled, "
    "bool amsgrad, Tensor? table=None) -> ()",
    reference.adam_step_,
    _fake_step,
)
define(
    f"sgd_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, {_EXTRAS}, "
    "float momentum, float dampening, bool nesterov, Tensor? table=None) -> ()",
    reference.sgd_step_,
    _fake_step,
)
define(
    "step_table(Tensor[] params, Tensor[] grads, Tensor[] states, Tensor[] averages, Tensor[] copies) -> Tensor",
    reference.step_table,
    reference.step_table,
)


@dataclass(frozen=True)
class StepExtras:
    """What a step does in the same pass over the tensors; by default nothing.

    Attributes:
        averages: T tensors alike the parameters but for the element type, updated: `a += weight * (p - a)`, with p the
            new parameter as stored, by the formula of `torch.lerp`; of weight 1 `a = p`. Empty for none.
        average_weight: 1 - decay for an exponential moving average, 1 / (n + 1) for the mean of n + 1 steps; a
            tensor of one number on the parameters' device is read there.
        copies: T tensors alike the parameters but for the element type, overwritten with the new parameters, rounded
            from the arithmetic's type: the weights that a model in bfloat16 runs on, of which the parameters are the
            masters. Empty for none.
        zero_grads: overwrite the gradients with zeros after they are read.
        multiplier: a number on the parameters' device; gradients are multiplied by it first.
        found_inf: a number on the parameters' device. Unless it is 0 the step is skipped: nothing is changed, but
            gradients are still zeroed if `zero_grads`.
        workspace: from `step_workspace`, for CUDA devices with `steps` there; made for each call if None.
    """

    averages: Sequence[Tensor] = ()
    average_weight: float | Tensor = 0.0
    copies: Sequence[Tensor] = ()
    zero_grads: bool = False
    multiplier: Tensor | None = None
    found_inf: Tensor | None = None
    workspace: Tensor | None = None


_NO_EXTRAS = StepExtras()


def adam_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    decoupled: bool = False,
    amsgrad: bool = False,
    maximize: bool = False,
    extras: StepExtras = _NO_EXTRAS,
    table: Tensor | None = None,
) -> None:
    """One step of Adam (arXiv 1412.6980), AMSGrad (1904.09237) or AdamW (1711.05101) over T tensors, as torch.optim
    does it.

    The arithmetic runs in float32, or in float64 where a tensor of that t in any list is float64.
    The result is the same for every number of threads.

    Args:
        params: T dense tensors, updated.
        grads: T tensors; like all lists below, with the shapes and strides of `params`.
        exp_avgs: T tensors, updated; the states of one t share one element type, which may differ from the
            parameter's.
        exp_avg_sqs: T tensors, updated.
        max_exp_avg_sqs: T tensors, updated, if `amsgrad`; else empty.
        steps: (T,) float32, the steps made so far; incremented unless the step is skipped. On the parameters' device
            or on the CPU; on the former if `extras.found_inf` is given, since only there the skip is known.
        lr: learning rate; a tensor of one number on the parameters' device is read there, any other at once.
        betas: decays of the first and second moment.
        weight_decay: L2 penalty, or the rate of decay if `decoupled`.
        eps: added to the denominator.
        decoupled: AdamW's weight decay instead of Adam's.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend instead of descend.
        extras: what else is done in the same pass.
        table: from `step_table` over these lists, which are not looked at then; nor is autograd told.

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together.
        TypeError: an element type or a kind of tensor that cannot be stepped.
    """
    options = {
        "weight_decay": float(weight_decay),
        "maximize": maximize,
        "beta1": float(betas[0]),
        "beta2": float(betas[1]),
        "eps": float(eps),
        "decoupled": decoupled,
        "amsgrad": amsgrad,
    }
    operator = torch.ops.ratfast.adam_step_
    if table is not None:
        _step_by_table(operator, 5, table, steps, lr, options, extras)
        return
    if not amsgrad and len(max_exp_avg_sqs) != 0:
        raise ValueError("max_exp_avg_sqs must be empty unless amsgrad is set")
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    _step(operator, params, grads, states, 3 if amsgrad else 2, steps, lr, options, extras)


def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    steps: Tensor,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    extras: StepExtras = _NO_EXTRAS,
    table: Tensor | None = None,
) -> None:
    """One step of stochastic gradient descent over T tensors, with torch.optim's momentum.

    `g = multiplier * grad + weight_decay * p; b = momentum * b + (1 - dampening) * g`, at a tensor's first step
    `b = g`; `p -= lr * (g + momentum * b if nesterov else b)`. The arithmetic's type is as in `adam_step_`.

    Args:
        params: T dense tensors, updated.
        grads: T tensors; like all lists below, with the shapes and strides of `params`.
        momentum_buffers: T tensors, updated, if `momentum` is not 0; else empty. At a tensor's first step they are
            overwritten unread.
        steps: (T,) float32, the steps made so far; incremented unless the step is skipped. Where it is 0, the step is
            the first. On the parameters' device or on the CPU; on the former if `extras.found_inf` is given.
        lr: learning rate; a tensor of one number on the parameters' device is read there, any other at once.
        momentum: factor of the buffer.
        dampening: what the gradient's factor in the buffer is short of 1.
        weight_decay: L2 penalty.
        nesterov: step by the gradient and the buffer.
        maximize: ascend instead of descend.
        extras: what else is done in the same pass.
        table: from `step_table` over these lists, which are not looked at then; nor is autograd told.

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together.
        TypeError: an element type or a kind of tensor that cannot be stepped.
    """
    options = {
        "weight_decay": float(weight_decay),
        "maximize": maximize,
        "momentum": float(momentum),
        "dampening": float(dampening),
        "nesterov": nesterov,
    }
    operator = torch.ops.ratfast.sgd_step_
    if table is not None:
        _step_by_table(operator, 3, table, steps, lr, options, extras)
        return
    if momentum == 0 and len(momentum_buffers) != 0:
        raise ValueError("momentum_buffers must be empty unless there is momentum")
    states = {"momentum_buffers": momentum_buffers}
    _step(operator, params, grads, states, 1 if momentum != 0 else 0, steps, lr, options, extras)


def step_table(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    extras: StepExtras = _NO_EXTRAS,
) -> Tensor | None:
    """Where the tensors of a step lie, for repeating it without taking its lists apart again.

    What keeps the table has to keep the tensors' memory, and to see to it that they stay where they are, as
    `ratfast.optim.guard` does; steps with it need `steps` on the tensors' device.

    Args:
        params: as in a step, like all that follows; of lists that such a step has accepted.
        grads: the gradients, which may move later: see `ratfast.optim.guard.keep_table`.
        states: the lists of states that the step has.
        extras: of it the averages and copies.

    Returns:
        Bytes on the CPU, or None where no native code would read them.
    """
    if not params:
        return None
    flat = list(itertools.chain(*states))
    table = torch.ops.ratfast.step_table(params, grads, flat, extras.averages, extras.copies)
    return table if table.numel() else None


def _step(
    operator: Callable[..., None],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: dict[str, Sequence[Tensor]],
    needed: int,
    steps: Tensor,
    lr: float | Tensor,
    options: dict[str, object],
    extras: StepExtras,
) -> None:
    """Checks, calls and reports a step with `needed` of the lists of states."""
    num_tensors = len(params)
    lists = {"params": list(params), "grads": list(grads)}
    lists.update((name, list(tensors)) for name, tensors in itertools.islice(states.items(), needed))
    for name, tensors in (("averages", extras.averages), ("copies", extras.copies)):
        if len(tensors) != 0:
            lists[name] = list(tensors)
    for name, tensors in lists.items():
        if len(tensors) != num_tensors:
            raise ValueError(f"{name} has {len(tensors)} tensors, but params has {num_tensors}")
    _check_steps(steps, num_tensors)
    if num_tensors == 0:
        return
    device = lists["params"][0].device
    if steps.device != device and (steps.device.type != "cpu" or extras.found_inf is not None):
        where = f"on {device}" if extras.found_inf is not None else f"on {device} or on the CPU"
        raise ValueError(f"steps are on {steps.device}, expected them {where}, with the params")
    for name in ("multiplier", "found_inf"):
        check_number(name, getattr(extras, name), device)
    rate, lr_tensor = as_number("lr", lr, device)
    weight, weight_tensor = as_number("average_weight", extras.average_weight, device)

    def check() -> None:
        check_alike(num_tensors, **lists)
        kept = list(itertools.islice(states, needed))
        for t in range(num_tensors):
            if any(lists[name][t].dtype != lists[kept[0]][t].dtype for name in kept):
                raise TypeError(f"{kept[0]}[{t}] and the other states of params[{t}] differ in element type")
        if not torch.compiler.is_compiling():
            check_apart(**lists)

    arguments = [lists["params"], lists["grads"]]
    arguments += [lists.get(name, []) for name in states]
    arguments += [lists.get("averages", []), lists.get("copies", []), steps.detach()]
    options |= {
        "workspace": workspace_on(extras.workspace, device) if steps.device == device else None,
        "multiplier": extras.multiplier,
        "found_inf": extras.found_inf,
        "lr_tensor": lr_tensor,
        "average_weight_tensor": weight_tensor,
        "lr": rate,
        "average_weight": weight,
        "zero_grads": extras.zero_grads,
    }
    everything = list(itertools.chain(*lists.values()))
    call(operator, arguments, options, everything, check)
    if not extras.zero_grads:
        everything = lists["params"] + everything[2 * num_tensors :]
    increment_versions([*everything, steps])


def _step_by_table(
    operator: Callable[..., None],
    lists: int,
    table: Tensor,
    steps: Tensor,
    lr: float | Tensor,
    options: dict[str, object],
    extras: StepExtras,
) -> None:
    """Calls a step that has been accepted before, with its `lists` of parameters, gradients and states in a table."""
    rate, lr_tensor = (lr, None) if type(lr) is float else as_number("lr", lr, steps.device)
    weight, weight_tensor = extras.average_weight, None
    if type(weight) is not float:
        weight, weight_tensor = as_number("average_weight", weight, steps.device)
    # In the order of the schema.
    operator.default(
        *_NOTHING[: lists + 2],
        steps,
        extras.workspace,
        extras.multiplier,
        extras.found_inf,
        lr_tensor,
        weight_tensor,
        rate,
        weight,
        extras.zero_grads,
        *options.values(),
        table,
    )


def _check_steps(steps: Tensor, num_tensors: int) -> None:
    if not isinstance(steps, Tensor):
        raise TypeError(f"steps is a {type(steps).__name__}, expected a tensor, which is incremented")
    if steps.shape != (num_tensors,):
        raise ValueError(f"steps has shape {tuple(steps.shape)}, but params need ({num_tensors},)")
    if steps.dtype != torch.float32 or not steps.is_contiguous():
        raise TypeError(f"steps is {steps.dtype} of strides {steps.stride()}, expected contiguous float32")
