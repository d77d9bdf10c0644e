"""What the fused optimizers share: torch.optim's interface, and what a step does in the same pass."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ratfast import ops
from ratfast.errors import InputError
from ratfast.gradients import gradient_row
from ratfast.optim import averaged, options, state_dicts
from ratfast.optim.alongside import Alongside, GoesAlong
from ratfast.optim.plan import Kept, Part, Plan
from ratfast.optim.plans import Plans
from ratfast.optim.scaling import PLAIN, Factor, Scaling
from ratfast.optim.state import StateTable

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class FusedOptimizer(GoesAlong, torch.optim.Optimizer):
    """An optimizer whose step is one pass over the weights; not for use by itself.

    A step runs eagerly: code under `torch.compile` steps out of its graph to call it.
    """

    # torch.amp.GradScaler hands over its scale instead of dividing the gradients by it.
    _step_supports_amp_scaling = True
    # Options that every group of such an optimizer has had in every version of torch.
    _required: tuple[str, ...] = ()

    def __init__(self, params: Params, defaults: dict[str, Any], alongside: Alongside):
        alongside.check()
        self._alongside = alongside
        self._loading: dict[str, Any] | None = None
        self._forget_plans()
        options.check_switches(defaults, type(self).__name__)
        self._check_options(defaults)
        super().__init__(params, defaults)
        self.state = StateTable()

    # What the algorithms say of themselves

    @staticmethod
    @abstractmethod
    def _check_options(group: Mapping[str, Any]) -> None:
        """Raises ValueError if a hyperparameter is out of range."""

    @abstractmethod
    def _is_sound(self, group: Mapping[str, Any]) -> bool:
        """Whether all hyperparameters are plain numbers in range, as they nearly always are; quick."""

    @abstractmethod
    def _moments(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the states that begin as zeros."""

    @abstractmethod
    def _update(self, group: Mapping[str, Any], part: Part, extras: ops.StepExtras) -> None:
        """Calls the operation."""

    _counts_steps = True

    # torch.optim's interface

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `step` as torch.optim does, with hooks and an entry in profiles, but only where they are asked for."""
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def wrapper(self: FusedOptimizer, *args: Any, **kwargs: Any) -> Any:
            if (
                self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
                or torch.autograd._profiler_enabled()
            ):
                return hooked(self, *args, **kwargs)
            result = func(self, *args, **kwargs)
            self._optimizer_step_code()
            return result

        return wrapper

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in torch.optim.

        Raises:
            ValueError: its options are out of range, or a parameter is already in a group, or twice in this one.
        """
        for name in asdict(self._alongside):
            if name in param_group:
                raise ValueError(
                    f"{name} is for all groups together, expected it as an argument of the optimizer"
                )
        given = param_group.get("params")
        if not isinstance(given, (Tensor, set)) and given is not None:
            param_group["params"] = given = list(given)
            _refuse_repeats(given)
        super().add_param_group(param_group)
        try:
            options.check_switches(self.param_groups[-1], type(self).__name__)
            self._check_options(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew; its result is returned.

        Returns:
            What `closure` returned, else None.

        Raises:
            InputError: a gradient or parameter cannot be stepped, a hyperparameter is not finite, or the step cannot
                be captured into a CUDA graph; says which and why. Nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._step_outside()
        else:
            self._step()
        return loss

    @torch.compiler.disable
    def _step_outside(self) -> None:
        """The step, out of a graph that is being compiled."""
        self._step()

    def _step(self) -> None:
        plans = self._current_plans()
        parts = [part for plan in plans for part in plan.parts]
        factors = self._factors(parts)
        zero_grads = self._alongside.zero_grads
        for group, plan in zip(self.param_groups, plans, strict=True):
            for part in plan.parts:
                self._update(group, part, self._extras(part, factors[part.device]))
                part.done(zero_grads=zero_grads)
        self._finish_averages(plans, factors)
        if zero_grads:
            self._note_zeros(parts)

    def _extras(self, part: Part, factor: Factor) -> ops.StepExtras:
        """What goes along with a part's step; nearly always the same as at its latest."""
        weight = self._average_weight(part.device)
        last = part.extras
        if (
            last is None
            or last.multiplier is not factor.multiplier
            or last.found_inf is not factor.found_inf
            or isinstance(weight, Tensor)
            or last.average_weight != weight
        ):
            part.extras = ops.StepExtras(
                averages=part.averages,
                average_weight=weight,
                copies=part.copies,
                zero_grads=self._alongside.zero_grads,
                multiplier=factor.multiplier,
                found_inf=factor.found_inf,
                workspace=self._scaling.workspace(part.device) if part.device.type == "cuda" else None,
            )
        return part.extras

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients: those in an arena by a fill of their row, others as torch.optim does.

        With `zero_grads`, gradients that the step has left zero and nobody has written since are left as they are.

        Args:
            set_to_none: whether gradients outside an arena become None instead of zeros.
        """
        kept: dict[int, list[Tensor]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                row = gradient_row(param.grad)
                if row is not None:
                    kept.setdefault(id(row), []).append(param.grad)
                elif set_to_none and not self._is_zero(param.grad):
                    param.grad = None
        with torch.no_grad():
            for grads in kept.values():
                row = gradient_row(grads[0])
                if self._is_zero(row.row):
                    continue
                if len(grads) == row.count:
                    row.row.zero_()
                else:
                    torch._foreach_zero_(grads)
        if not set_to_none:
            super().zero_grad(set_to_none=False)

    @torch.compiler.disable
    def state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's form, which torch.optim loads too.

        What is kept beside torch.optim's states is in the parameters' states under names of its own, "master_param",
        "averaged_param" and "n_averaged"; torch.optim carries them along unused.
        """
        packed = super().state_dict()
        on_host = {
            key: not (group.get("capturable") or group.get("fused"))
            for group in packed["param_groups"]
            for key in group["params"]
        }
        packed["state"] = state_dicts.plain_states(packed["state"], on_host)
        return packed

    @torch.compiler.disable
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer or of torch.optim's, of any of its implementations.

        What the constructor said of clipping, averages, masters and zeros stays.

        Raises:
            InputError: it is of another optimizer, or a state or hyperparameter cannot be. Nothing is changed then.
            ValueError: it has other groups.
        """

        # The last of the hooks: it sees what will be loaded.
        def look(_: Any, loaded: dict[str, Any]) -> None:
            self._loading = self._checked(loaded)

        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            self._loading = None
            handle.remove()

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        name = type(self).__name__
        saved = state_dict.get("param_groups", [])
        kept = [self._kept(self._completed(group)) for group in saved] if isinstance(saved, list) else []
        state_dicts.check(state_dict, self.param_groups, kept, self._required, name)
        for number, group in enumerate(saved):
            try:
                self._check_options(self._completed(group))
            except ValueError as error:
                raise InputError(f"group {number} of this state dict cannot be loaded: {error}") from error
        return state_dict

    def _completed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group of a state dict, which may be of a version of torch that had fewer options."""
        return {**self.defaults, **_missing_options(), **group}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_alongside": self._alongside, "_counts": self._plans.counts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_loading", None)
        self.state = StateTable(self.state)
        self._forget_plans()
        self._plans.counts.update(state.get("_counts", {}))
        for group in self.param_groups:
            for option, value in _missing_options().items():
                if option in self.defaults:
                    group.setdefault(option, value)
            for switch, values in options.SWITCHES.items():
                # A state dict of torch.optim says how torch computed it, which is of no concern here.
                if group.get(switch) not in values:
                    group[switch] = values[0]
        kept = [self._kept(group) for group in self.param_groups]
        if self._loading is not None:
            state_dicts.widen(self.state, self._loading, self.param_groups, kept)
        for entry in self.state.values():
            if isinstance(entry, dict) and "step" in entry:
                # In torch's older state dicts they are numbers.
                entry["step"] = torch.as_tensor(entry["step"], dtype=torch.float32)

    # Inside

    def _kept(self, group: Mapping[str, Any]) -> Kept:
        alongside, moments = self._alongside, self._moments(group)
        averages = alongside.swa or alongside.ema_decay is not None
        kept = self._known_kept.get((moments, averages))
        if kept is None:
            kept = Kept(moments, self._counts_steps, alongside.master_weights, averages)
            self._known_kept[moments, averages] = kept
        return kept

    def _forget_plans(self) -> None:
        self._plans = Plans()
        self._known_kept: dict[tuple[tuple[str, ...], bool], Kept] = {}
        self._scaling = Scaling()
        self._mean = averaged.Mean()
        self._zeroed: dict[int, tuple[Tensor, int]] = {}  # what the step left zero, and its version then

    def _current_plans(self) -> list[Plan]:
        """A plan for each group, as `ratfast.optim.plans.Plans` keeps them; gradients are brought."""
        if type(self.state) is not StateTable:
            self.state = StateTable(self.state)
            self._plans.forget()
        capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if capturing:
            self._check_capture()
        if self._holds_averages:
            raise InputError(
                "the parameters hold their averages: steps are made outside of averaged_parameters()"
            )
        for group in self.param_groups:
            self._check_step(group)
        plans, renewed = self._plans.current(self.param_groups, self.state, self._kept, capturing)
        if renewed and self._alongside.swa:
            self._mean.attach(
                [param for group in self.param_groups for param in group["params"] if param in self.state],
                self.state,
            )
            self._plans.accept_changes(self.state)
        return plans

    def _check_step(self, group: Mapping[str, Any]) -> None:
        """Refuses hyperparameters that were changed to what they may not be since the group was added."""
        if self._is_sound(group):
            return
        if any(
            isinstance(group[name], Tensor) and group[name].device.type != "cpu" for name in self._required
        ):
            return  # reading them would wait for the device
        try:
            self._check_options(group)
        except ValueError as error:
            raise InputError(f"the step is not made: {error}") from error

    def _check_capture(self) -> None:
        for group in self.param_groups:
            if not group.get("capturable", True):
                raise InputError(
                    f"{type(self).__name__} cannot be captured into a CUDA graph with capturable=False: a replay "
                    "would repeat the hyperparameters of the captured step unasked; give capturable=True"
                )

    def _factors(self, parts: list[Part]) -> dict[torch.device, Factor]:
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if self._alongside.max_grad_norm is None and grad_scale is None and found_inf is None:
            return {part.device: PLAIN for part in parts}
        grads: dict[torch.device, list[Tensor]] = {}
        tables: dict[torch.device, list[Tensor]] = {}
        for part in parts:
            if part.table is None:
                grads.setdefault(part.device, []).extend(part.grads)
            else:
                tables.setdefault(part.device, []).append(part.table)
        return self._scaling.factors(
            grads,
            grad_scale=grad_scale,
            found_inf=found_inf,
            max_norm=self._alongside.max_grad_norm,
            tables=tables,
        )

    def _average_weight(self, device: torch.device) -> float | Tensor:
        if self._alongside.swa:
            return self._mean.weight(device)
        return 0.0 if self._alongside.ema_decay is None else 1.0 - self._alongside.ema_decay

    def _finish_averages(self, plans: list[Plan], factors: Mapping[torch.device, Factor]) -> None:
        for plan in plans:
            for param in plan.idle:
                factor = factors.get(param.device, PLAIN)
                weight = self._average_weight(param.device)
                averaged.follow_idle([param], self.state, weight, factor.found_inf)
        if self._alongside.swa:
            for device, factor in factors.items():
                self._mean.advance(device, factor.found_inf)

    def _note_zeros(self, parts: Iterable[Part]) -> None:
        self._zeroed = {id(grad): (grad, grad._version) for part in parts for grad in part.left_zero}

    def _is_zero(self, grad: Tensor | None) -> bool:
        noted, version = self._zeroed.get(id(grad), (None, 0))
        return noted is not None and noted is grad and version == grad._version


def _missing_options() -> dict[str, Any]:
    """Options that state dicts of older versions of torch lack, with what they meant then."""
    return {
        "amsgrad": False,
        "maximize": False,
        "nesterov": False,
        "foreach": None,
        "fused": None,
        "capturable": False,
        "differentiable": False,
    }


def _refuse_repeats(params: list[Any]) -> None:
    seen: dict[int, int] = {}
    for index, param in enumerate(params):
        tensor = param[1] if isinstance(param, tuple) else param
        if isinstance(tensor, Tensor) and seen.setdefault(id(tensor), index) != index:
            raise ValueError(
                f"parameter {index} of the group is parameter {seen[id(tensor)]} too: it appears twice, expected once"
            )
