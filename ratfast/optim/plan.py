"""How a parameter group is stepped: found out once, then only checked to be still true."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import same_order
from ratfast.optim.runs import find_runs, join_states, work_strides
from ratfast.rows import dtype_name, flattened

# Called with tensors to step: parameters, gradients, states by key, and the number of this step for each.
Update = Callable[[list[Tensor], list[Tensor], dict[str, list[Tensor]], Tensor], None]


class Plan:
    """Runs and states of the parameters of one group that have a gradient.

    Args:
        params: the group's parameters.
        grads: their gradients, or None.
        states: the optimizer's state, created where missing.
        keys: the states that the update needs beside "step".
        name: gives the name of the i-th parameter for messages.

    Raises:
        InputError: a parameter or gradient cannot be stepped; names it.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: MutableMapping[Tensor, dict[str, Any]],
        keys: Sequence[str],
        name: Callable[[int], str],
    ):
        self._params = list(params)
        self._pointers = [param.data_ptr() for param in params]
        self._strides = [param.stride() for param in params]
        self._keys = tuple(keys)
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is not None:
                _refuse_unsupported(param, grad, name(index))
                kinds.setdefault((param.device, param.dtype), []).append(index)
        self._indices = sorted(index for members in kinds.values() for index in members)
        self._parts = [
            _Part(members, self._params, grads, states, self._keys, name) for members in kinds.values()
        ]

    def fits(self, params: Sequence[Tensor], grads: Sequence[Tensor | None], keys: Sequence[str]) -> bool:
        """Whether tensors, gradients and states are where they were when the plan was made."""
        return (
            self._keys == tuple(keys)
            and len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and self._indices == [index for index, grad in enumerate(grads) if grad is not None]
            and self._pointers == list(map(Tensor.data_ptr, params))
            and self._strides == list(map(Tensor.stride, params))
            and all(part.fits(grads) for part in self._parts)
        )

    def step(self, grads: Sequence[Tensor | None], update: Update) -> None:
        """Steps every parameter that has a gradient.

        Args:
            grads: of all the group's parameters.
            update: the operation.

        Raises:
            InputError: a gradient is sparse; names its parameter.
        """
        for part in self._parts:
            part.step(grads, update)


class _Part:
    """The parameters of a plan that share device and element type: one call of the operation."""

    def __init__(
        self,
        members: list[int],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: MutableMapping[Tensor, dict[str, Any]],
        keys: tuple[str, ...],
        name: Callable[[int], str],
    ):
        made = [_steps_made(states[params[index]]) for index in members]
        runs = [
            [members[position] for position in run]
            for run in find_runs([params[i] for i in members], [grads[i] for i in members], made)
        ]
        # The runs' first parameters lead, so that the step numbers of the runs are the head of one vector.
        heads = [run[0] for run in runs]
        tails = [(index, place) for place, run in enumerate(runs) for index in run[1:]]
        empty = [index for index in members if params[index].numel() == 0]
        order = heads + [index for index, _ in tails] + empty
        self._name = name
        self._first = list(range(len(heads))) + [place for _, place in tails]
        self._params = [params[index] for index in order]
        self._states = [states[param] for param in self._params]
        self._keys = keys
        self._steps = torch.tensor([made[members.index(index)] for index in order], dtype=torch.float32)
        for state, step in zip(self._states, self._steps, strict=True):
            state["step"] = step
        self._run_steps = self._steps[: len(heads)]
        self._follower_params = [params[index] for index, _ in tails]
        self._shared = [index for run in runs if len(run) > 1 for index in run]
        self._shared_grads = [grads[index] for index in self._shared]
        self._shared_pointers = [grad.data_ptr() for grad in self._shared_grads]
        self._single = [
            (
                place,
                index,
                params[index],
                strides := work_strides(params[index]),
                strides != params[index].stride(),
            )
            for place, (index, *followers) in enumerate(runs)
            if not followers
        ]
        self._targets = [
            params[run[0]] if len(run) == 1 else flattened([params[i] for i in run]) for run in runs
        ]
        self._grads = [None if len(run) == 1 else flattened([grads[i] for i in run]) for run in runs]
        self._joined: dict[str, list[Tensor]] = {}
        for key in keys:
            self._joined[key] = [
                join_states([params[i] for i in run], [states[params[i]] for i in run], key) for run in runs
            ]
            for index in empty:
                states[params[index]].setdefault(key, torch.zeros_like(params[index]))
        self._entries = {key: [state[key] for state in self._states] for key in ("step", *keys)}

    def fits(self, grads: Sequence[Tensor | None]) -> bool:
        shared = [grads[index] for index in self._shared]
        if not all(map(is_, shared, self._shared_grads)):
            return False
        if self._shared_pointers != list(map(Tensor.data_ptr, shared)):
            return False
        try:
            for key, entries in self._entries.items():
                if not all(map(is_, map(itemgetter(key), self._states), entries)):
                    return False
        except KeyError:  # the user took a state out
            return False
        if not self._shared:
            return True
        steps = self._steps.tolist()
        return [steps[first] for first in self._first] == steps[: len(self._first)]

    def step(self, grads: Sequence[Tensor | None], update: Update) -> None:
        targets, brought = list(self._targets), list(self._grads)
        scattered = []
        for place, index, param, strides, is_scattered in self._single:
            grad = grads[index]
            if grad.layout != torch.strided:
                _refuse_unsupported(param, grad, self._name(index))
            if is_scattered:
                targets[place] = param.detach().contiguous()
                scattered.append((param, targets[place]))
            if grad.dtype != param.dtype or not same_order(param.shape, grad.stride(), strides):
                grad = torch.empty_strided(
                    param.shape, strides, dtype=param.dtype, device=param.device
                ).copy_(grad)
            brought[place] = grad
        self._steps.add_(1)
        if targets:
            update(targets, brought, self._joined, self._run_steps)
        for param, dense in scattered:
            param.copy_(dense)
        if self._shared:
            # A row's version counter is that of its first parameter; tell autograd of the others.
            torch.autograd.graph.increment_version(self._follower_params)


def _steps_made(state: MutableMapping[str, Any]) -> float:
    return float(state.get("step", 0.0))


def _refuse_unsupported(param: Tensor, grad: Tensor, name: str) -> None:
    if grad.layout != torch.strided:
        raise InputError(f"the gradient of {name} is sparse; the fused optimizers step dense gradients only")
    kind = BY_NAME.get(dtype_name(param.dtype))
    if kind is None or not kind.is_floating:
        raise InputError(
            f"{name} is {dtype_name(param.dtype)}, expected float64, float32, float16 or bfloat16"
        )
