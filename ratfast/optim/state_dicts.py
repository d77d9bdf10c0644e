"""State dicts: torch.optim's form, and what is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ratfast.errors import InputError
from ratfast.optim.checks import check_state
from ratfast.optim.plan import Kept, averaged_type, stepped_type

if TYPE_CHECKING:
    from ratfast.optim.state import StateTable


def plain_states(packed: Mapping[Any, Any], on_host: Mapping[Any, bool]) -> dict[Any, Any]:
    """The states of a state dict as torch.optim would have them.

    Every parameter gets its number of steps to itself: here the parameters of a run share one, which torch.optim,
    counting for each, would count several times.

    Args:
        packed: by parameter, as the optimizer holds them.
        on_host: for which parameters torch.optim counts steps on the CPU.
    """
    steps = {
        key: state["step"] for key, state in packed.items() if isinstance(state, Mapping) and "step" in state
    }
    own = dict(zip(steps, _apart(list(steps.values())), strict=True))
    result = {}
    for key, state in packed.items():
        if not isinstance(state, Mapping):
            result[key] = state
            continue
        result[key] = {name: value for name, value in state.items() if value is not None}
        if key in own:
            result[key]["step"] = own[key] if on_host[key] else own[key].to(steps[key].device)
    return {key: state for key, state in result.items() if state != {}}


def _apart(numbers: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, each its own element, after one wait for each device."""
    if not numbers:
        return []
    if len({number.device for number in numbers}) > 1:
        numbers = [number.cpu() for number in numbers]
    return list(torch.stack([number.detach() for number in numbers]).cpu().unbind())


def check(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    kept: Sequence[Kept],
    required: Sequence[str],
    optimizer: str,
) -> None:
    """Refuses a state dict that is none of this optimizer's.

    Args:
        state_dict: to be loaded.
        groups: the optimizer's groups.
        kept: what the optimizer would keep in each group of the state dict.
        required: options that every group of such an optimizer has.
        optimizer: its name.

    Raises:
        InputError: names what is wrong.
    """
    for entry in ("state", "param_groups"):
        if entry not in state_dict:
            raise InputError(f"this is no state dict of an optimizer: it lacks {entry!r}")
    saved_groups = state_dict["param_groups"]
    for number, group in enumerate(saved_groups):
        missing = [option for option in required if option not in group]
        if missing:
            raise InputError(
                f"this state dict is of another optimizer than {optimizer}: its group {number} lacks "
                f"{', '.join(missing)}"
            )
    for number, (group, saved, keep) in enumerate(zip(groups, saved_groups, kept, strict=False)):
        for index, (param, key) in enumerate(zip(group["params"], saved["params"], strict=False)):
            state = state_dict["state"].get(key)
            if state:
                _check_state(param, state, keep, name_of(group, number, index), optimizer)


def _check_state(param: Tensor, state: Mapping[str, Any], kept: Kept, name: str, optimizer: str) -> None:
    needed = [*kept.moments, *(["step"] if kept.counts_steps else [])]
    extra = ("max_exp_avg_sq",)  # amsgrad may be switched on later
    missing = [key for key in needed if key not in state and key not in extra]
    if missing and len(state) > len(state.keys() & {"averaged_param", "master_param", "n_averaged"}):
        raise InputError(
            f"this state dict is of another optimizer than {optimizer}: the state of {name} has "
            f"{', '.join(map(str, state))}, expected {', '.join(needed)}"
        )
    check_state(param, state, kept.names(), name)


def widen(
    states: StateTable,
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    kept: Sequence[Kept],
) -> None:
    """Puts back what torch.optim's loading has rounded to the type of narrow parameters.

    Args:
        states: the optimizer's, just loaded.
        state_dict: what was loaded.
        groups: the optimizer's groups.
        kept: what the optimizer keeps in each group.
    """
    for group, saved, keep in zip(groups, state_dict["param_groups"], kept, strict=True):
        for param, key in zip(group["params"], saved["params"], strict=True):
            source = state_dict["state"].get(key) or {}
            for name in keep.names():
                dtype = (
                    averaged_type(param) if name == "averaged_param" else stepped_type(param, keep.masters)
                )
                if isinstance(source.get(name), Tensor) and dtype != param.dtype:
                    states[param][name] = source[name].to(param.device, dtype)
            if "n_averaged" in source:
                states[param]["n_averaged"] = torch.as_tensor(source["n_averaged"], dtype=torch.float64)
            if not keep.masters and param in states:
                states[param].pop("master_param", None)


def name_of(group: Mapping[str, Any], number: int, index: int) -> str:
    """What messages call a parameter."""
    names = group.get("param_names")
    return names[index] if names else f"parameter {index} of group {number}"
