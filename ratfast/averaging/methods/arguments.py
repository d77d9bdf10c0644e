"""What every method checks of its options: numbers in range, the base and the others, weights of some models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ratfast.averaging.combination import Rows
from ratfast.averaging.rules import check_weights
from ratfast.errors import InputError


def number(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        InputError: it is something else.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f"{name} is {value!r}, expected a finite number")
    return result


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, at least `least`.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return value


def seed_number(value: Any) -> int:
    """A seed: a whole number of 32 bits, as the random numbers of the kernels take.

    Raises:
        InputError: it is something else.
    """
    if whole("seed", value, 0) >= 2**32:
        raise InputError(f"seed is {value!r}, expected a number below 2**32")
    return value


def share(name: str, value: Any) -> float:
    """A number in (0, 1].

    Raises:
        InputError: it is something else.
    """
    result = number(name, value)
    if not 0.0 < result <= 1.0:
        raise InputError(f"{name} is {value!r}, expected a number above 0 and up to 1")
    return result


def numbers(name: str, values: Any) -> list[float]:
    """One number or several, at least one, as a list.

    Raises:
        InputError: they are something else.
    """
    if isinstance(values, Iterable) and not isinstance(values, str):
        result = [number(name, value) for value in values]
        if not result:
            raise InputError(f"{name} is an empty list, expected at least one number")
        return result
    return [number(name, values)]


def split_base(
    rows: Rows, base: Any, method: str, fewest: int, most: int | None = None
) -> tuple[int, list[int]]:
    """The base's index, and those of the other models.

    Raises:
        InputError: `base` is no index of the pool, or there are not as many others as the method needs.
    """
    if isinstance(base, bool) or not isinstance(base, int) or not 0 <= base < len(rows):
        raise InputError(f"base is {base!r}, expected the index of a model, from 0 to {len(rows) - 1}")
    others = [n for n in range(len(rows)) if n != base]
    if len(others) < fewest or (most is not None and len(others) > most):
        wanted = f"{fewest} other model{'s' if fewest > 1 else ''}" + ("" if most == fewest else " or more")
        raise InputError(f"{method} needs a base and {wanted}, but there are {len(rows)} models in all")
    return base, others


def positive_total(weights: Iterable[float] | None, count: int, method: str) -> list[float]:
    """Weights scaled to a sum of 1; none of them negative.

    Raises:
        InputError: not `count` finite numbers, one is negative, or their sum is 0.
    """
    result = check_weights(weights, count)
    total = math.fsum(result)
    if min(result) < 0.0 or total <= 0.0:
        raise InputError(f"the weights of {method} are {result}, expected none below 0 and one above it")
    return [weight / total for weight in result]


def spread(count: int, indices: Iterable[int], weights: Iterable[float]) -> list[float]:
    """A row of `count` weights with those given at `indices`, and 0 elsewhere."""
    row = [0.0] * count
    for index, weight in zip(indices, weights, strict=True):
        row[index] = weight
    return row
