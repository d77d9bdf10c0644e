"""The average of the weights that a step keeps beside them: an exponential moving average or the mean of all steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ratfast.errors import InputError
from ratfast.optim.plan import States


class Mean:
    """How many steps are in the running mean: float64 numbers on each device, where steps may be skipped unseen."""

    def __init__(self) -> None:
        self._counts: dict[torch.device, Tensor] = {}

    def attach(self, params: Sequence[Tensor], states: States) -> None:
        """Makes the counts states of the parameters, "n_averaged"; what is there already, as from a file, counts."""
        for param in params:
            state = states[param]
            count = self._counts.get(param.device)
            if count is None:
                found = state.get("n_averaged", 0.0)
                count = torch.as_tensor(found, dtype=torch.float64).to(param.device, copy=True).reshape(())
                self._counts[param.device] = count
            if state.get("n_averaged") is not count:
                state["n_averaged"] = count

    def weight(self, device: torch.device) -> Tensor:
        """1 / (n + 1), with which the next step enters the mean."""
        return (self._counts[device] + 1.0).reciprocal_()

    def advance(self, device: torch.device, found_inf: Tensor | None) -> None:
        """Counts a step, unless it was skipped."""
        self._counts[device].add_(1.0 if found_inf is None else (found_inf == 0))

    def restart(self) -> None:
        """Forgets all steps."""
        for count in self._counts.values():
            count.zero_()


def follow_idle(
    params: Sequence[Tensor], states: States, weight: float | Tensor, found_inf: Tensor | None
) -> None:
    """Moves the averages of parameters that had no gradient: these stand still, their averages need not.

    Args:
        params: of one device, with an average.
        states: the optimizer's.
        weight: as in `ratfast.ops.StepExtras.average_weight`.
        found_inf: not 0 if the step was skipped.
    """
    for param in params:
        average = states[param]["averaged_param"]
        value = states[param].get("master_param", param).to(average.dtype)
        rate = torch.as_tensor(weight, dtype=average.dtype, device=average.device)
        average.lerp_(value, rate if found_inf is None else rate * (found_inf == 0))


def averaged_state_dict(model: nn.Module, states: Mapping[Tensor, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The model's state dict with averages in place of the parameters that have one; all tensors are copies.

    Raises:
        InputError: none of the model's parameters has an average.
    """
    own = model.state_dict(keep_vars=True)
    averages = {
        name: states[value]["averaged_param"]
        for name, value in own.items()
        if isinstance(value, Tensor) and "averaged_param" in states.get(value, ())
    }
    if not averages:
        raise InputError(
            f"no parameter of this {type(model).__name__} has an average yet: give the model that is trained, after "
            "a step with ema_decay or swa"
        )
    result = {}
    for name, value in own.items():
        if name in averages:
            result[name] = averages[name].to(value.dtype, copy=True)
        else:
            result[name] = value.detach().clone() if isinstance(value, Tensor) else value
    return result


@contextmanager
def swapped(params: Sequence[Tensor], states: Mapping[Tensor, Mapping[str, Any]]) -> Iterator[None]:
    """Within it parameters hold their averages; then, to the bit, what they held before."""
    chosen = [param for param in params if "averaged_param" in states.get(param, ())]
    if not chosen:
        raise InputError("there is no average yet: make a step with ema_decay or swa first")
    with torch.no_grad():
        before = [param.detach().clone() for param in chosen]
        for param in chosen:
            param.copy_(states[param]["averaged_param"])
    try:
        yield
    finally:
        with torch.no_grad():
            for param, value in zip(chosen, before, strict=True):
                param.copy_(value)
