"""Hyperparameters of the optimizers: what each may be, in torch.optim's words where torch.optim refuses them too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What torch.optim's implementation switches may be here; the first is what stands for a value that may not.
SWITCHES: dict[str, tuple[Any, ...]] = {
    "foreach": (None, False),
    "fused": (None, True),
    "differentiable": (False,),
}


def number(value: float | Tensor) -> float:
    """A hyperparameter that may be a tensor of one element (reading it waits for its device)."""
    return float(value)


def scalar(value: Any) -> Any:
    """A tensor of one element without its dimensions; anything else as it is."""
    return value.squeeze() if isinstance(value, Tensor) and value.dim() else value


def check_switches(options: Mapping[str, Any], optimizer: str) -> None:
    """Refuses the implementations of torch.optim that are not this one.

    Raises:
        ValueError: names the switch and says what it may be.
    """
    for name, values in SWITCHES.items():
        if options[name] not in values:
            raise ValueError(
                f"{optimizer} does not support {name}={options[name]!r}, expected "
                f"{' or '.join(repr(value) for value in values)}"
            )


def check_adam(options: Mapping[str, Any]) -> None:
    """Refuses hyperparameters of Adam that are out of range.

    Raises:
        ValueError: in torch.optim's words.
    """
    _check_at_least_zero(options, lr="learning rate", eps="epsilon value", weight_decay="weight_decay value")
    betas = options["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas}, expected two numbers")
    for index, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{index}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")


def check_sgd(options: Mapping[str, Any]) -> None:
    """Refuses hyperparameters of SGD that are out of range or do not go together.

    Raises:
        ValueError: in torch.optim's words.
    """
    _check_at_least_zero(
        options, lr="learning rate", momentum="momentum value", weight_decay="weight_decay value"
    )
    if not math.isfinite(options["dampening"]):
        raise ValueError(f"Invalid dampening value: {options['dampening']}")
    if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


def _check_at_least_zero(options: Mapping[str, Any], **words: str) -> None:
    for name, words_of_it in words.items():
        value = options[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element")
            if value.is_complex():
                raise ValueError(f"Invalid {words_of_it}: {value}")
        if not value >= 0.0:  # NaN is not
            raise ValueError(f"Invalid {words_of_it}: {value}")


def is_on_device(value: Any, device: torch.device) -> bool:
    """Whether a hyperparameter is a tensor that an operation on `device` can read without the host."""
    return isinstance(value, Tensor) and value.device == device
