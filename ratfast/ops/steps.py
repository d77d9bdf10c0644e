"""Optimizer steps, and the norm of the gradients that goes before them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratfast import reference
from ratfast.ops.checks import check_alike, check_apart
from ratfast.ops.registration import call, check_cuda, define, increment_versions

# Of the workspace of CUDA kernels, float64 numbers: kWorkspace of csrc/cuda/launch.h.
_WORKSPACE = 2049


def _fake_step(params: list[Tensor], *tensors: object, **options: object) -> None:
    check_cuda(params)


def _fake_gradient_norm_(grads: list[Tensor], *tensors: object, **options: object) -> None:
    check_cuda(grads)


_EXTRAS = (
    "Tensor(x!)[] averages, Tensor(y!)[] copies, Tensor(z!) steps, *, Tensor(w!)? workspace, "
    "Tensor? multiplier, Tensor? found_inf, Tensor? lr_tensor, Tensor? average_weight_tensor, float lr, "
    "float average_weight, bool zero_grads, float weight_decay, bool maximize"
)
define(
    "adam_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    f"Tensor(e!)[] max_exp_avg_sqs, {_EXTRAS}, float beta1, float beta2, float eps, bool decoupled, "
    "bool amsgrad) -> ()",
    reference.adam_step_,
    _fake_step,
)
define(
    f"sgd_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, {_EXTRAS}, "
    "float momentum, float dampening, bool nesterov) -> ()",
    reference.sgd_step_,
    _fake_step,
)
define(
    "gradient_norm_(Tensor[] grads, Tensor(a!) norm, Tensor(b!) multiplier, Tensor(c!) found_inf, *, "
    "Tensor(d!)? workspace, Tensor? grad_scale, float max_norm) -> ()",
    reference.gradient_norm_,
    _fake_gradient_norm_,
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
    checked: bool = False,
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
        checked: skip what can be skipped of the checks, which take longer than a small step: tensors like these have
            been accepted before.

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together.
        TypeError: an element type or a kind of tensor that cannot be stepped.
    """
    if not amsgrad and len(max_exp_avg_sqs) != 0:
        raise ValueError("max_exp_avg_sqs must be empty unless amsgrad is set")
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    options = {
        "weight_decay": float(weight_decay),
        "maximize": maximize,
        "beta1": float(betas[0]),
        "beta2": float(betas[1]),
        "eps": float(eps),
        "decoupled": decoupled,
        "amsgrad": amsgrad,
    }
    needed = 3 if amsgrad else 2
    _step(torch.ops.ratfast.adam_step_, params, grads, states, needed, steps, lr, options, extras, checked)


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
    checked: bool = False,
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
        checked: skip what can be skipped of the checks, which take longer than a small step: tensors like these have
            been accepted before.

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together.
        TypeError: an element type or a kind of tensor that cannot be stepped.
    """
    if momentum == 0 and len(momentum_buffers) != 0:
        raise ValueError("momentum_buffers must be empty unless there is momentum")
    options = {
        "weight_decay": float(weight_decay),
        "maximize": maximize,
        "momentum": float(momentum),
        "dampening": float(dampening),
        "nesterov": nesterov,
    }
    states = {"momentum_buffers": momentum_buffers}
    needed = 1 if momentum != 0 else 0
    _step(torch.ops.ratfast.sgd_step_, params, grads, states, needed, steps, lr, options, extras, checked)


def gradient_norm_(
    grads: Sequence[Tensor],
    norm: Tensor,
    multiplier: Tensor,
    found_inf: Tensor,
    *,
    grad_scale: Tensor | None = None,
    max_norm: float = math.inf,
    workspace: Tensor | None = None,
    checked: bool = False,
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
        checked: as in `adam_step_`.

    Raises:
        ValueError: a tensor on another device, not dense, or not of one number.
        TypeError: an element type or a kind of tensor without a norm.
    """
    if checked and len(grads) != 0 and not torch.compiler.is_compiling():
        results = [norm, multiplier, found_inf]
        with torch.no_grad():
            torch.ops.ratfast.gradient_norm_.default(
                grads, *results, workspace=workspace, grad_scale=grad_scale, max_norm=max_norm
            )
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
        _check_number(name, number, device, dtype)
    if math.isnan(max_norm) or max_norm < 0:
        raise ValueError(f"max_norm is {max_norm}, expected a number that is not negative")
    results = [norm, multiplier, found_inf]
    if not flat:
        with torch.no_grad():
            reference.gradient_norm_([], *results, grad_scale=grad_scale, max_norm=float(max_norm))
        return
    options = {
        "workspace": _workspace(workspace, device),
        "grad_scale": grad_scale,
        "max_norm": float(max_norm),
    }
    call(
        torch.ops.ratfast.gradient_norm_,
        [flat, *results],
        options,
        flat,
        lambda: check_alike(len(flat), grads=flat),
    )
    increment_versions(results)


def step_workspace(device: torch.device | str) -> Tensor:
    """Memory that a step or a norm works in, for reuse by those that follow each other on one stream.

    Args:
        device: of the parameters.

    Returns:
        float64 zeros, which each operation leaves usable for the next.
    """
    return torch.zeros(_WORKSPACE, dtype=torch.float64, device=device)


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
    checked: bool,
) -> None:
    """Checks, calls and reports a step with `needed` of the lists of states."""
    num_tensors = len(params)
    if checked and num_tensors != 0 and not torch.compiler.is_compiling():
        _step_checked(operator, params, grads, states, steps, lr, options, extras)
        return
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
        _check_number(name, getattr(extras, name), device)
    rate, lr_tensor = _number("lr", lr, device)
    weight, weight_tensor = _number("average_weight", extras.average_weight, device)

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
        "workspace": _workspace(extras.workspace, device) if steps.device == device else None,
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


def _step_checked(
    operator: Callable[..., None],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: dict[str, Sequence[Tensor]],
    steps: Tensor,
    lr: float | Tensor,
    options: dict[str, object],
    extras: StepExtras,
) -> None:
    """Calls and reports a step that has been accepted before."""
    device = params[0].device
    rate, lr_tensor = _number("lr", lr, device)
    weight, weight_tensor = _number("average_weight", extras.average_weight, device)
    with torch.no_grad():
        operator.default(
            params,
            grads,
            *states.values(),
            extras.averages,
            extras.copies,
            steps,
            workspace=extras.workspace,
            multiplier=extras.multiplier,
            found_inf=extras.found_inf,
            lr_tensor=lr_tensor,
            average_weight_tensor=weight_tensor,
            lr=rate,
            average_weight=weight,
            zero_grads=extras.zero_grads,
            **options,
        )
    written = [*params, *(grads if extras.zero_grads else ()), *itertools.chain(*states.values())]
    increment_versions([*written, *extras.averages, *extras.copies, steps])


def _check_steps(steps: Tensor, num_tensors: int) -> None:
    if not isinstance(steps, Tensor):
        raise TypeError(f"steps is a {type(steps).__name__}, expected a tensor, which is incremented")
    if steps.shape != (num_tensors,):
        raise ValueError(f"steps has shape {tuple(steps.shape)}, but params need ({num_tensors},)")
    if steps.dtype != torch.float32 or not steps.is_contiguous():
        raise TypeError(f"steps is {steps.dtype} of strides {steps.stride()}, expected contiguous float32")


def _check_number(
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


def _number(name: str, value: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """A number as such, or as a tensor that is to be read on its device."""
    if not isinstance(value, Tensor):
        return float(value), None
    if value.device.type == "cpu" and (
        device.type != "cpu" or value.dtype not in (torch.float32, torch.float64)
    ):
        return float(value), None
    _check_number(name, value, device)
    return 0.0, value.detach()


def _workspace(workspace: Tensor | None, device: torch.device) -> Tensor | None:
    if device.type != "cuda":
        return None
    if workspace is None:
        return step_workspace(device)
    if workspace.device != device or workspace.dtype != torch.float64 or workspace.numel() != _WORKSPACE:
        raise ValueError("workspace does not come from step_workspace for the tensors' device")
    return workspace
