"""How a parameter group is stepped: found out once, then only checked to be still true."""

from __future__ import annotations

import itertools
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratfast import ops
from ratfast.gradients import gradient_row
from ratfast.layout import is_dense, same_order
from ratfast.ops import StepExtras
from ratfast.ops.registration import increment_versions
from ratfast.optim.guard import Guard, keep_table, make_guard
from ratfast.optim.runs import find_rounds, find_runs, join_states, work_strides
from ratfast.rows import flattened

States = MutableMapping[Tensor, MutableMapping[str, Any]]

_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps for each parameter.

    Attributes:
        moments: names of the states that begin as zeros.
        counts_steps: whether the number of steps is a state, "step".
        masters: keep float32 masters of narrow parameters, "master_param", which are stepped in their place.
        averages: keep an average of the parameters, "averaged_param".
    """

    moments: tuple[str, ...]
    counts_steps: bool
    masters: bool = False
    averages: bool = False

    def names(self) -> tuple[str, ...]:
        """Names of the states that are shaped as the parameter."""
        return (*self.moments, *(["master_param"] * self.masters), *(["averaged_param"] * self.averages))


def is_mastered(param: Tensor, masters: bool) -> bool:
    """Whether a parameter is a narrow copy of a float32 master."""
    return masters and param.dtype in _NARROW


def stepped_type(param: Tensor, masters: bool) -> torch.dtype:
    """The element type of what is stepped: the parameter's, or its master's."""
    return torch.float32 if is_mastered(param, masters) else param.dtype


def averaged_type(param: Tensor) -> torch.dtype:
    """The element type of a parameter's average: no narrower than float32, or its small steps would round away."""
    return torch.float32 if param.dtype in _NARROW else param.dtype


class Plan:
    """Runs and states of the parameters of one group that have a gradient.

    Args:
        params: the group's parameters.
        grads: their gradients, or None; `check_gradients` accepted them.
        states: the optimizer's state, created where missing.
        counts: steps of the parameters, where they are no state; created where missing.
        kept: what the optimizer keeps.

    Attributes:
        parts: what is stepped by one call each, in order.
        idle: parameters with an average that have no gradient now.
        kept: what the optimizer keeps.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: States,
        counts: MutableMapping[Tensor, Tensor],
        kept: Kept,
    ):
        self.kept = kept
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is not None:
                kinds.setdefault((param.device, param.dtype), []).append(index)
        self.parts = [
            Part([members[place] for place in chosen], params, grads, states, counts, kept)
            for members in kinds.values()
            for chosen in find_rounds([params[index] for index in members])
        ]
        self.idle = [
            param
            for param, grad in zip(params, grads, strict=True)
            if kept.averages and grad is None and "averaged_param" in states.get(param, ())
        ]
        shared = {index for part in self.parts for index in part.shared}
        self._guard = make_guard(params, [index in shared for index in range(len(params))])
        for part in self.parts:
            part.guard = self._guard

    def grads(self, params: list[Tensor]) -> list[Tensor | None] | None:
        """The gradients, if everything is as it was when the plan was made; else None.

        Args:
            params: the group's parameters.
        """
        for part in self.parts:
            if not part.is_untouched():
                return None
        return self._guard.grads(params)


class Part:
    """The parameters of a plan that one call of the operation steps: of one device and one element type.

    Attributes:
        device: theirs.
        targets: what is stepped: a row for a run of parameters, else the parameter or a dense copy of it.
        grads: the gradient of each target, after `bring`.
        moments: the states by name, each alike `targets`.
        copies: the narrow parameters whose masters the targets are, or nothing.
        averages: alike `targets`, or nothing.
        steps: (T,) float32 on the device, the steps that each target has made; counted by the operation.
        shared: indices of the parameters that are stepped in a run.
        guard: the plan's.
        table: of the step, once the operation has taken these tensors; None where there is none.
        extras: what goes along, as at the latest step.
        left_zero: after a step that zeroes: the gradients, and the rows of an arena's gradients.
    """

    def __init__(
        self,
        members: list[int],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: States,
        counts: MutableMapping[Tensor, Tensor],
        kept: Kept,
    ):
        self.device = params[members[0]].device
        self._mastered = is_mastered(params[members[0]], kept.masters)
        made = _steps_made([params[index] for index in members], states, counts, kept)
        found = find_runs([params[i] for i in members], [grads[i] for i in members], made)
        runs = [[members[place] for place in run] for run in found]
        self._join([[params[index] for index in run] for run in runs], states, kept)

        # The parameters of a run share one number, as they share the row.
        self.steps = torch.tensor([made[run[0]] for run in found], dtype=torch.float32, device=self.device)
        for step, run in zip(self.steps, runs, strict=True):
            for index in run:
                if kept.counts_steps:
                    states[params[index]]["step"] = step
                else:
                    counts[params[index]] = step

        self.shared = [index for run in runs if len(run) > 1 for index in run]
        self._rows = [None if len(run) == 1 else flattened([grads[i] for i in run]) for run in runs]
        single = [(place, run[0]) for place, run in enumerate(runs) if len(run) == 1]
        self._singles = [
            (place, index, _other_strides(params[index], grads[index])) for place, index in single
        ]
        self._scattered = [
            (place, params[index])
            for place, index in single
            if not is_dense(params[index].shape, params[index].stride())
        ]
        # A row's version counter is that of its first parameter.
        followers = [params[index] for run in runs for index in run[1:]]
        states = [*itertools.chain(*self.moments.values()), *self.averages]
        if self._mastered:
            states += self.targets
        # Tensors that autograd is told were overwritten. That takes the lock of Python for each that nothing but
        # Python holds; of a view, torch holds the base. It also keeps the memory, whatever becomes of the states.
        self._written = [*(self.copies or self.targets), *followers, *states, self.steps]
        with torch.no_grad():
            self._held = [state.view_as(state) for state in states]
        self._narrow = [params[index] for run in runs for index in run] if self._mastered else []
        whole = [_whole(grads[index]) for index in self.shared]
        self._whole_rows = list({id(grad): grad for grad in whole}.values())
        self.left_zero: list[Tensor] = []
        self.table: Tensor | None = None
        self.guard: Guard | None = None
        self._tabled = False
        self.extras: StepExtras | None = None
        self.grads: list[Tensor] = list(self._rows)
        self._replaced: list[Tensor] = []
        self._note_versions()

    def _join(self, runs: list[list[Tensor]], states: States, kept: Kept) -> None:
        """Sets what is stepped and its states."""
        self.moments: dict[str, list[Tensor]] = {key: [] for key in kept.moments}
        self.targets, self.copies, self.averages = [], [], []
        stepped = stepped_type(runs[0][0], kept.masters)

        def start_of_average(param: Tensor) -> Tensor:
            return states[param].get("master_param", param)

        for run in runs:
            entries = [states[param] for param in run]
            weight = run[0] if len(run) == 1 else flattened(run)
            if self._mastered:
                master = join_states(run, entries, "master_param", stepped, Tensor.float)
                _follow(master, weight)
                self.targets.append(master)
                self.copies.append(weight)
            else:
                self.targets.append(weight)
            for key, tensors in self.moments.items():
                tensors.append(join_states(run, entries, key, stepped))
            if kept.averages:
                kind = averaged_type(run[0])
                self.averages.append(join_states(run, entries, "averaged_param", kind, start_of_average))

    def is_untouched(self) -> bool:
        """Whether nobody but the step has counted steps."""
        return self._version == self.steps._version

    def bring(self, grads: Sequence[Tensor | None]) -> None:
        """Sets `grads`, dense copies of parameters that are not dense, and masters of changed parameters.

        Args:
            grads: of all the group's parameters.
        """
        if self._singles:
            self._replaced = []
            for place, index, strides in self._singles:
                grad = grads[index]
                if strides is not None:
                    self._replaced.append(grad)
                    dense = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=self.device)
                    grad = dense.copy_(grad)
                self.grads[place] = grad
        weights = self.copies if self._mastered else self.targets
        for place, param in self._scattered:
            weights[place] = param.detach().contiguous()
        if self._mastered and self._versions != [param._version for param in self._narrow]:
            for master, weight in zip(self.targets, weights, strict=True):
                _follow(master, weight)

    def done(self, *, zero_grads: bool) -> None:
        """Takes note of the step: brings dense copies back, and tells autograd what was overwritten."""
        written = self._written
        weights = self.copies if self._mastered else self.targets
        for place, param in self._scattered:
            param.copy_(weights[place])
            weights[place] = param
        if not self._tabled:
            self._tabled = True
            self._make_table()
        if zero_grads:
            if self._replaced:
                torch._foreach_zero_(self._replaced)
            own = [self.grads[place] for place, _, strides in self._singles if strides is None]
            self.left_zero = [*self._whole_rows, *own, *self._replaced]
            written = [*written, *self.left_zero]
        if self._singles:  # gradients are the user's to free
            self.grads = list(self._rows)
            self._replaced = []
        increment_versions(written)
        self._note_versions()

    def _make_table(self) -> None:
        """Makes the table, where nothing has to be copied before or after a step."""
        if self._scattered or self._replaced or self.steps.device.type not in ("cpu", "cuda"):
            return
        extras = StepExtras(averages=self.averages, copies=self.copies)
        table = ops.step_table(self.targets, self.grads, list(self.moments.values()), extras)
        places = {index: place for place, index, _ in self._singles}
        kept = [*self.moments.values(), self.averages, self.targets if self._mastered else []]
        states = [tensors[place] for tensors in kept if tensors for place in places.values()]
        if table is not None and keep_table(self.guard, table, len(self.targets), places, states):
            self.table = table

    def _note_versions(self) -> None:
        self._version = self.steps._version
        self._versions = [param._version for param in self._narrow]


def _other_strides(param: Tensor, grad: Tensor) -> tuple[int, ...] | None:
    """Strides that the gradient has to be copied into to step with the parameter; None if it lies like that."""
    strides = work_strides(param)
    return None if same_order(param.shape, grad.stride(), strides) else strides


def _whole(grad: Tensor) -> Tensor:
    row = gradient_row(grad)
    return grad if row is None else row.row


def _steps_made(
    params: Sequence[Tensor], states: States, counts: MutableMapping[Tensor, Tensor], kept: Kept
) -> list[float]:
    """The number of steps of each parameter, read from devices at once."""
    if kept.counts_steps:
        found = [states[param].get("step", 0.0) for param in params]
    else:
        # What has no moment yet has made no step, whatever was counted before it was taken away.
        found = [
            0.0 if any(states[param].get(key) is None for key in kept.moments) else counts.get(param, 1.0)
            for param in params
        ]
    numbers = [value for value in found if isinstance(value, Tensor)]
    if numbers:
        read = iter(
            torch.stack([value.detach().float().reshape(()) for value in _on_one_device(numbers)]).tolist()
        )
        return [next(read) if isinstance(value, Tensor) else float(value) for value in found]
    return [float(value) for value in found]


def _on_one_device(tensors: list[Tensor]) -> list[Tensor]:
    devices = {tensor.device for tensor in tensors}
    return tensors if len(devices) == 1 else [tensor.cpu() for tensor in tensors]


def _follow(master: Tensor, weight: Tensor) -> None:
    """Makes a master equal to a narrow weight, but where it rounds to the weight already."""
    master.copy_(torch.where(master.to(weight.dtype) == weight, master, weight.to(master.dtype)))
