"""Runs: parameters that lie next to each other, as do their gradients, and so are stepped as one tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ratfast.layout import contiguous_strides, is_dense, same_order
from ratfast.rows import flattened, memory_span


def find_runs(params: Sequence[Tensor], grads: Sequence[Tensor], steps: Sequence[float]) -> list[list[int]]:
    """Splits parameters into maximal runs that one row operation can step.

    In a run, parameters are dense and adjacent in one storage, gradients have their strides and are adjacent
    in the same order in one storage, and all have made the same number of steps. On an arena without frozen
    parameters that is one run; unrelated parameters are a run each.

    Args:
        params: all of one device and element type.
        grads: of the same shapes.
        steps: steps made so far.

    Returns:
        Positions in `params`, each once; tensors without elements are runs of their own.
    """

    def plain(index: int) -> bool:
        param, grad = params[index], grads[index]
        return same_order(param.shape, grad.stride(), param.stride()) and is_dense(
            param.shape, param.stride()
        )

    def follows(before: int, after: int) -> bool:
        return (
            steps[before] == steps[after]
            and grads[before].dtype == grads[after].dtype
            and all(flattened([tensors[before], tensors[after]]) is not None for tensors in (params, grads))
        )

    runs: list[list[int]] = []
    extensible = False
    filled = (index for index in range(len(params)) if params[index].numel())
    for index in sorted(filled, key=lambda index: params[index].data_ptr()):
        simple = plain(index)
        if extensible and simple and follows(runs[-1][-1], index):
            runs[-1].append(index)
        else:
            runs.append([index])
        extensible = simple
    return runs + [[index] for index in range(len(params)) if not params[index].numel()]


def find_rounds(params: Sequence[Tensor]) -> list[list[int]]:
    """Splits parameters into rounds within which none shares memory with another.

    Different parameters on shared memory are stepped one after the other in their order, as torch.optim does it.

    Args:
        params: all of one device.

    Returns:
        Positions in `params`, each once; nearly always in a single round.
    """
    spans = [memory_span(param) for param in params]
    filled = sorted(span for span in spans if span[0] < span[1])
    if all(before[1] <= after[0] for before, after in itertools.pairwise(filled)):
        return [list(range(len(params)))]
    rounds: list[list[int]] = []
    place: list[int] = []
    for index, (start, end) in enumerate(spans):
        sharing = [
            place[other] for other in range(index) if spans[other][0] < end and start < spans[other][1]
        ]
        place.append(max(sharing, default=-1) + 1)
        if place[index] == len(rounds):
            rounds.append([])
        rounds[place[index]].append(index)
    return rounds


def work_strides(param: Tensor) -> tuple[int, ...]:
    """Strides of what a parameter is stepped as: its own, or C order if it is not dense."""
    shape, strides = tuple(param.shape), tuple(param.stride())
    return strides if is_dense(shape, strides) else contiguous_strides(shape)


def join_states(
    params: Sequence[Tensor],
    states: Sequence[MutableMapping[str, Any]],
    key: str,
    dtype: torch.dtype,
    start: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The states `key` of a run's parameters as one tensor that steps with them.

    States that already lie as the parameters do are left where they are; others are copied into a new row and
    replaced by views of it.

    Args:
        params: of one run, in its order.
        states: the optimizer's state of each; `states[i][key]` is read and set.
        key: such as "exp_avg".
        dtype: of the states.
        start: gives the value of a state that is not there yet; zeros if None.

    Returns:
        1-D over the whole run, or the state itself, shaped as the parameter, if the run is one parameter.
    """
    values = [state.get(key) for state in states]
    strides = [work_strides(param) for param in params]
    if all(
        value is not None
        and value.dtype == dtype
        and value.device == param.device
        and same_order(param.shape, value.stride(), stride)
        for param, value, stride in zip(params, values, strides, strict=True)
    ):
        joined = values[0] if len(values) == 1 else flattened(values)
        if joined is not None:
            return joined
    if len(params) == 1:  # no view, so that it can be replaced and freed by itself
        param, value = params[0], values[0]
        alone = torch.empty_strided(param.shape, strides[0], dtype=dtype, device=param.device)
        if value is None and start is None:
            alone.zero_()
        else:
            alone.copy_(start(param) if value is None else value)
        states[0][key] = alone
        return alone
    size = sum(param.numel() for param in params)
    row = torch.zeros(size, dtype=dtype, device=params[0].device)
    offset = 0
    for param, state, value, stride in zip(params, states, values, strides, strict=True):
        view = row.as_strided(param.shape, stride, offset)
        if value is not None:
            view.copy_(value)
        elif start is not None:
            view.copy_(start(param))
        state[key] = view
        offset += param.numel()
    return row
