"""The torch operators `ratfast::mix_` and `ratfast::adam_`, and the checked functions that call them.

The schemas stand here. The native libraries register implementations for the CPU and for CUDA; every other
device, and every device where they are not loaded, runs `ratfast.reference`. The operators have no autograd:
call them through `mix_` and `adam_`, which check their arguments, run without gradients, and tell autograd
what was overwritten.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ratfast import native, reference
from ratfast.ops_checks import check_alike, check_memory

_library = torch.library.Library("ratfast", "DEF")
_tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_library.define("mix_(Tensor(a!)[] outputs, Tensor[] sources, Tensor weights) -> ()", tags=_tags)
_library.define(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor steps, *, float lr, float beta1, float beta2, float weight_decay, "
    "float eps, bool decoupled, bool amsgrad, bool maximize) -> ()",
    tags=_tags,
)
_library.impl("mix_", reference.mix_, "CompositeExplicitAutograd")
_library.impl("adam_", reference.adam_, "CompositeExplicitAutograd")
native.load_torch_libraries()

_MOST_CUDA_SOURCES = 1024  # what one call of the CUDA library can mix: kMaxSources of csrc/cuda/launch.h


@torch.library.register_fake("ratfast::mix_", lib=_library)
def _(outputs: list[Tensor], sources: list[Tensor], weights: Tensor) -> None:
    _check_cuda(outputs)


@torch.library.register_fake("ratfast::adam_", lib=_library)
def _(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: Tensor,
    **scalars: float,
) -> None:
    _check_cuda(params)


def _check_cuda(tensors: Iterable[Tensor]) -> None:
    """Before an operator runs natively on a CUDA device: where that cannot work, all of them leave it to torch."""
    for device in {tensor.device for tensor in tensors}:
        if device.type == "cuda" and native.covers("cuda") and not native.check_cuda(device.index or 0):
            for name in ("mix_", "adam_"):
                _library.impl(name, getattr(reference, name), "CUDA")


def mix_(
    outputs: Sequence[Sequence[Tensor]],
    sources: Sequence[Sequence[Tensor]],
    weights: Tensor | Sequence[Sequence[float]],
) -> None:
    """Writes K weighted sums of N models: `outputs[k][t] = sum over n of weights[k, n] * sources[n][t]`.

    All K sums are made in one pass over the sources, in float32, or in float64 where a source or an output of
    that t is float64. Models are added in order, so the result does not depend on the number of threads. More
    than 1,024 models on a CUDA device are summed by plain torch.

    Args:
        outputs: K models of T tensors. A tensor may be the memory of a source of the same t (in place); any
            other overlap is refused.
        sources: N models of T tensors; N >= 1. The tensors of one t must agree in shape and strides and be
            dense; their element types (float64, float32, bfloat16, float16) may differ.
        weights: (K, N).

    Raises:
        ValueError: lists, shapes, strides, devices or memory do not fit together.
        TypeError: an element type or a kind of tensor that cannot be averaged.
    """
    num_outputs, num_sources = len(outputs), len(sources)
    if num_outputs == 0:
        return
    num_tensors = len(outputs[0])
    for kind, models in (("outputs", outputs), ("sources", sources)):
        for index, model in enumerate(models):
            if len(model) != num_tensors:
                raise ValueError(
                    f"{kind}[{index}] has {len(model)} tensors, but outputs[0] has {num_tensors}"
                )
    if num_sources == 0:
        raise ValueError("sources is empty, so there is nothing to average")
    matrix = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if matrix.shape != (num_outputs, num_sources):
        raise ValueError(
            f"weights have shape {tuple(matrix.shape)}, but {num_outputs} outputs of {num_sources} sources "
            f"need ({num_outputs}, {num_sources})"
        )
    if num_tensors == 0:
        return
    flat_outputs = [tensor for model in outputs for tensor in model]
    flat_sources = [tensor for model in sources for tensor in model]

    def check() -> None:
        check_alike(num_tensors, outputs=flat_outputs, sources=flat_sources)
        if not torch.compiler.is_compiling():
            check_memory(flat_outputs, flat_sources, num_tensors)

    arguments = (flat_outputs, flat_sources, matrix.detach().contiguous())
    if num_sources > _MOST_CUDA_SOURCES and flat_outputs[0].is_cuda:
        check()
        with torch.no_grad():
            reference.mix_(*arguments)
    else:
        _call(torch.ops.ratfast.mix_, arguments, {}, [*flat_outputs, *flat_sources], check)
    _increment_versions(flat_outputs)


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
    _call(torch.ops.ratfast.adam_, arguments, options, list(itertools.chain(*flat.values())), check)
    _increment_versions([*flat["params"], *itertools.chain(*states)])


def _call(
    operator: Callable[..., None],
    arguments: Sequence[object],
    options: dict[str, object],
    tensors: list[Tensor],
    check: Callable[[], None],
) -> None:
    """Calls an operator after `check`, or without it where native code refuses the same things faster."""
    devices = {tensor.device for tensor in tensors}
    if not torch.compiler.is_compiling():
        _check_cuda(tensors[:1])
    trusted = (
        not torch.compiler.is_compiling()
        and len(devices) == 1
        and native.covers(next(iter(devices)).type)
        and {tensor.layout for tensor in tensors} == {torch.strided}
    )
    if not trusted:
        check()
    with torch.no_grad():
        try:
            operator(*arguments, **options)
        except RuntimeError:
            if trusted:
                check()  # finds better words, unless the trouble is another
            raise


def _increment_versions(tensors: list[Tensor]) -> None:
    # Operators registered through the stable ABI do not do this themselves. A compiled graph does its own.
    if torch.compiler.is_compiling():
        return
    try:
        torch.autograd.graph.increment_version(tensors)
    except RuntimeError:  # inference tensors have no version
        torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
