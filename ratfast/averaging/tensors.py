"""`average`: one weighted sum of modules, state dicts and files of any types and memory orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ratfast import ops
from ratfast.averaging.batch_norm import recompute_batch_norm
from ratfast.averaging.buffers import average_integer
from ratfast.averaging.members import Member, Model, in_order, open_member, strides_of, tied
from ratfast.averaging.opening import open_models
from ratfast.averaging.rules import check_weights, layout_mismatch
from ratfast.checkpoints.tensors import dtype_name, layout_of
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.rows import memory_span, same_view

RECOMPUTE = "recompute"
"""The policy for buffers that needs a module and data, so only `average` has it."""

_BATCH_BYTES = 256 << 20  # of copies in another memory order that exist at a time


@dataclass
class _Sum:
    """A tensor to compute: all names that share it, and where it goes."""

    names: list[str]
    first: Tensor  # of the first model, whose type and device the result has
    sources: list[Tensor]  # of the models that count, as they came
    strides: tuple[int, ...]
    output: Tensor


@torch.no_grad()
def average(
    models: Iterable[Model],
    weights: Iterable[float] | None = None,
    *,
    buffers: str = "error",
    out: nn.Module | MutableMapping[str, Tensor] | None = None,
    dtype: torch.dtype | str | None = None,
    loader: Iterable[Any] | None = None,
) -> dict[str, Tensor]:
    """The weighted sum of models, read once each: `sum over n of weights[n] * models[n]`.

    Sums are held in float64 on the CPU, and on other devices in float32, or in float64 where a tensor is float64
    in any model. The models may differ in element types, memory formats and devices; the result has those of the
    first. Models of weight 0 are not read, so that nothing that is not finite in them reaches the result.

    Buffers are the buffers of the first module among the models; if there is none, batch-norm statistics
    (`running_mean`, `running_var`, `num_batches_tracked`). Integer tensors always count as buffers; they keep
    their type, and their averages are rounded to the nearest integer.

    Args:
        models: modules, state dicts, or paths of checkpoints, in any mixture; at least one. Their tensors
            must agree in names and shapes.
        weights: one finite number for each model; by default 1 / N. They need not sum to 1 and may be
            negative.
        buffers: `"keep"` the first model's buffers; `"average"` them as well; `"error"`: keep them, but
            raise if another model's differ; or `"recompute"`: average them, then set batch-norm statistics to those
            of the data that `loader` gives `out`, as `recompute_batch_norm` does.
        out: a module or a dict of tensors to write the result into, which may be one of the models; it keeps
            its element types and devices.
        dtype: the result's type, for tensors of floating types; by default each keeps the first model's.
        loader: batches of inputs, for `"recompute"` only.

    Returns:
        The result by name, in the order of the first model; without gradients. Tensors that share memory in
        every model (tied weights) are averaged once and share memory again.

    Raises:
        InputError: models, weights or `out` do not fit together, or buffers differ and `buffers` is "error".
    """
    if buffers == RECOMPUTE:
        if not isinstance(out, nn.Module) or loader is None:
            raise InputError('buffers="recompute" needs out, a module, and loader, which gives it batches')
        results = average(models, weights, buffers="average", out=out, dtype=dtype)
        recompute_batch_norm(out, loader)
        return results
    target_dtype = floating_dtype(dtype)
    opened = open_models(models, buffers)
    members, summed, kept_names = opened.members, opened.summed, opened.kept
    numbers = check_weights(weights, len(members))
    first = members[0].tensors
    if out is None:
        results = {}
    else:
        if dtype is not None:
            raise InputError("out and dtype were both given, but what is written into keeps its own types")
        results = _check_out(out, members[0])
    if buffers == "average":
        others = {name: average_integer(name, members, numbers) for name in kept_names}
    else:
        others = {name: first[name] for name in kept_names}
    counted = [index for index, number in enumerate(numbers) if number != 0.0] or [0]
    sums = [
        _Sum(
            names,
            first[names[0]],
            [members[index].tensors[names[0]] for index in counted],
            strides_of(first[names[0]]),
            Tensor(),
        )
        for names in tied(summed, members)
    ]
    if out is not None:
        # Copies, because what is written into may be their memory.
        others = {
            name: kept if same_view(results[name], kept) else kept.clone() for name, kept in others.items()
        }
    _place(sums, results, others, target_dtype)
    _run(sums, [numbers[index] for index in counted])

    if out is None:
        values = {name: total.output for total in sums for name in total.names}
        for name, kept in others.items():
            floating = target_dtype is not None and kept.is_floating_point()
            values[name] = kept.to(target_dtype if floating else kept.dtype, copy=True)
        return {name: values[name] for name in first}
    # Last, because what is overwritten here may be the memory of a model.
    for total in sums:
        for name in total.names:
            _assign(results[name], total.output)
    for name, kept in others.items():
        _assign(results[name], kept)
    return results


def floating_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The type that a result is asked to have.

    Raises:
        InputError: it is no floating type that is known.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in BY_NAME or not BY_NAME[name].is_floating:
        choices = ", ".join(known.name for known in BY_NAME.values() if known.is_floating)
        raise InputError(f"dtype is {dtype}, expected one of {choices}")
    return getattr(torch, name)


def _check_out(out: nn.Module | MutableMapping[str, Tensor], first: Member) -> dict[str, Tensor]:
    if not isinstance(out, (nn.Module, MutableMapping)):
        raise InputError(f"out is a {type(out).__name__}, expected a module or a dict of tensors")
    results = open_member(out, 0).tensors
    for name, tensor in results.items():
        dtype_name(name, tensor)
    phrases = layout_of(first.tensors).differences(layout_of(results))
    if phrases:
        raise layout_mismatch("out", first.label, phrases)
    for name, tensor in results.items():
        if tensor.is_floating_point() != first.tensors[name].is_floating_point():
            raise InputError(
                f"{name!r} of out is {dtype_name(name, tensor)}, which cannot hold the average of "
                f"{dtype_name(name, first.tensors[name])}"
            )
    return {name: results[name] for name in first.tensors}


def _place(
    sums: list[_Sum], results: dict[str, Tensor], others: dict[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Gives each sum its output: memory of `results` where it can be written at once, else new memory."""
    in_use: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    if results:
        for index, total in enumerate(sums):
            for source in total.sources:
                in_use[_storage(source)].append((*memory_span(source), index))
        for kept in others.values():
            in_use[_storage(kept)].append((*memory_span(kept), -1))
    for index, total in enumerate(sums):
        model = total.first
        candidate = results.get(total.names[0])
        if candidate is not None and candidate.device == model.device and candidate.stride() == total.strides:
            start, end = memory_span(candidate)
            clashes = [
                (begin, owner)
                for begin, stop, owner in in_use[_storage(candidate)]
                if begin < end and start < stop and (begin != start or owner != index)
            ]
            alike = all(s.dtype == candidate.dtype for s in total.sources if s.data_ptr() == start)
            if not clashes and alike:
                in_use[_storage(candidate)].append((start, end, -1))
                total.output = candidate
                continue
        own = model.dtype if candidate is None else candidate.dtype
        total.output = torch.empty_strided(
            model.shape, total.strides, dtype=dtype or own, device=model.device
        )


def _run(sums: list[_Sum], weights: list[float]) -> None:
    batch: list[tuple[Tensor, list[Tensor]]] = []
    copied = 0
    for total in sums:
        device = total.output.device
        ordered = [in_order(source, total.strides, device) for source in total.sources]
        copied += sum(
            a.nbytes for a, b in zip(ordered, total.sources, strict=True) if a.data_ptr() != b.data_ptr()
        )
        batch.append((total.output, ordered))
        if copied >= _BATCH_BYTES:
            _mix(batch, weights)
            batch, copied = [], 0
    _mix(batch, weights)


def _mix(batch: list[tuple[Tensor, list[Tensor]]], weights: list[float]) -> None:
    outputs = [output for output, _ in batch]
    sources = [[ordered[n] for _, ordered in batch] for n in range(len(weights))]
    ops.mix_([outputs], sources, [weights])


def _assign(target: Tensor, value: Tensor) -> None:
    if not same_view(target, value):
        target.copy_(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
