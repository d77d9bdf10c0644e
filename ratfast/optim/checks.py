"""What cannot be stepped: parameters, gradients and states that are refused before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.rows import dtype_name


def check_gradients(
    params: Sequence[Tensor], grads: Sequence[Tensor | None], name: Callable[[int], str]
) -> None:
    """Refuses what cannot be stepped.

    Raises:
        InputError: names the first such parameter, and says what is wrong with it or its gradient.
    """
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is not None:
            problem = _problem(param, grad)
            if problem is not None:
                raise InputError(problem.format(name=name(index)))


def _problem(param: Tensor, grad: Tensor) -> str | None:
    """What is wrong with a parameter or its gradient, with `{name}` for its name; None if nothing is."""
    kind = BY_NAME.get(dtype_name(param.dtype))
    if kind is None or not kind.is_floating:
        return f"{{name}} is {dtype_name(param.dtype)}, expected float64, float32, float16 or bfloat16"
    if type(param.data) is not Tensor or type(grad.data) is not Tensor:
        other = param if type(param.data) is not Tensor else grad
        return f"{{name}} or its gradient is a {type(other.data).__name__}, expected ordinary tensors"
    if param.layout != torch.strided:
        return "{name} is sparse; the fused optimizers step dense parameters only"
    if grad.layout != torch.strided:
        return "the gradient of {name} is sparse; the fused optimizers step dense gradients only"
    if grad.device != param.device:
        return f"the gradient of {{name}} is on {grad.device}, expected {param.device} as the parameter"
    if grad.shape != param.shape:
        return f"the gradient of {{name}} has shape {list(grad.shape)}, expected {list(param.shape)}"
    # A parameter may ask for gradients of another type; None stands for any.
    asked = getattr(param, "grad_dtype", param.dtype)
    kind = BY_NAME.get(dtype_name(grad.dtype))
    if (
        kind is None
        or not kind.is_floating
        or (grad.dtype != param.dtype and asked not in (None, grad.dtype))
    ):
        wanted = dtype_name(asked or param.dtype)
        return f"the gradient of {{name}} is {dtype_name(grad.dtype)}, expected {wanted} as the parameter"
    if param.numel() and any(
        stride == 0 and size > 1 for size, stride in zip(param.shape, param.stride(), strict=True)
    ):
        return (
            "{name} is an expanded tensor, whose elements share memory; expected one with an element for each"
        )
    return None


def check_state(param: Tensor, state: Mapping[str, Any], keys: Sequence[str], name: str) -> None:
    """Refuses states that cannot be those of a parameter.

    Raises:
        InputError: names the parameter and the state.
    """
    for key in keys:
        value = state.get(key)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise InputError(f"the optimizer state {key} of {name} is no dense floating-point tensor")
        if value.shape != param.shape:
            raise InputError(
                f"the optimizer state {key} of {name} has shape {list(value.shape)}, expected {list(param.shape)}"
            )
