"""The methods by name: functions of a pool, without torch, that say how the models are combined.

A method is `function(rows, *, option=default, ...) -> Combination`; its docstring gives the paper and the formula.
What it may be asked for stands in its signature, so a method is added by writing it and naming it in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ratfast.averaging.combination import Combination, Rows
from ratfast.averaging.methods.angles import model_stock, slerp
from ratfast.averaging.methods.columns import fisher, geometric, maximum, minimum
from ratfast.averaging.methods.linear import fusing, path, task_arithmetic, uniform, weighted, wise_ft
from ratfast.averaging.methods.sparse import dare_linear, dare_ties, ties
from ratfast.errors import InputError

METHODS: dict[str, Callable[..., Combination]] = {
    "uniform": uniform,
    "weighted": weighted,
    "wise-ft": wise_ft,
    "path": path,
    "fusing": fusing,
    "task-arithmetic": task_arithmetic,
    "slerp": slerp,
    "model-stock": model_stock,
    "ties": ties,
    "dare-linear": dare_linear,
    "dare-ties": dare_ties,
    "fisher": fisher,
    "geometric": geometric,
    "min": minimum,
    "max": maximum,
}

__all__ = ["METHODS", "find_method", "has_base", "method_options", "plan"]


def find_method(method: str) -> Callable[..., Combination]:
    """The function of a method; an underscore may stand for the hyphen in its name.

    Raises:
        InputError: there is no such method.
    """
    function = METHODS.get(str(method).replace("_", "-"))
    if function is None:
        raise InputError(f"there is no method {method!r}, expected one of {', '.join(METHODS)}")
    return function


def method_options(method: str) -> tuple[str, ...]:
    """What a method can be asked for."""
    return tuple(find_method(method).__kwdefaults__ or ())


def has_base(method: str) -> bool:
    """Whether a method tells a base model from the others."""
    return "base" in method_options(method)


def plan(rows: Rows, method: str, options: dict[str, Any]) -> Combination:
    """What a method with these options makes of a pool.

    Raises:
        InputError: the method or an option does not exist, a value is out of range, or the pool does not fit.
    """
    function = find_method(method)
    known = method_options(method)
    for name in options:
        if name not in known:
            expected = f"expected one of {', '.join(known)}" if known else "it has none"
            raise InputError(f"the method {method} has no option {name!r}: {expected}")
    return function(rows, **options)
