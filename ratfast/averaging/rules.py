"""The rules that every form of averaging shares: weights, buffers, what fits together. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Layout

BUFFERS = ("keep", "average", "error")


def check_buffers(policy: str) -> None:
    """Raises InputError unless `policy` is a policy for buffers."""
    if policy not in BUFFERS:
        raise InputError(f"buffers is {policy!r}, expected one of {', '.join(BUFFERS)}")


def check_weights(weights: Iterable[Any] | None, count: int) -> list[float]:
    """The weights of `count` models as floats; 1 / count each where none are given.

    They need not sum to 1, so that task vectors can be added and subtracted.

    Raises:
        InputError: not `count` finite numbers.
    """
    if weights is None:
        return [1 / count] * count
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise InputError(f"the weights are {weights!r}, expected {count} numbers") from None
    if len(numbers) != count:
        raise InputError(f"{len(numbers)} weights were given for {count} models, expected one for each")
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise InputError(f"weight {index + 1} is {number}, expected a finite number")
    return numbers


def layout_mismatch(label: str, first_label: str, phrases: Sequence[str]) -> InputError:
    """The error for a model whose names or shapes differ from the first's, given `Layout.differences`."""
    shown = "; ".join(phrases[:3])
    more = f"; and {len(phrases) - 3} more" if len(phrases) > 3 else ""
    return InputError(f"{label} does not fit {first_label}: {shown}{more}")


def check_layouts(layouts: Sequence[Layout], labels: Sequence[str]) -> None:
    """Raises InputError unless all layouts have the first's names and shapes."""
    for layout, label in zip(layouts[1:], labels[1:], strict=True):
        if layout is layouts[0]:  # as of files whose headers are the same
            continue
        phrases = layouts[0].differences(layout)
        if phrases:
            raise layout_mismatch(label, labels[0], phrases)


def buffers_differ(names: Sequence[str], label: str, first_label: str) -> InputError:
    """The error of the policy "error": buffers `names` of one model are not those of the first."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return InputError(
        f"buffer {names[0]!r}{others} of {label} differ from those of {first_label}; choose to keep the "
        "first's (buffers=keep) or to average them (buffers=average)"
    )


def bool_buffer(name: str) -> InputError:
    """The error for a truth value that differs between models and is to be averaged."""
    return InputError(f"the truth values of {name!r} differ between the models and have no average")


def other_kind(name: str, dtype: str, label: str, first_dtype: str, first_label: str) -> InputError:
    """The error for a tensor that is an integer in one model and of a floating type in another."""
    own = "of a floating type" if BY_NAME[first_dtype].is_floating else first_dtype
    return InputError(f"{name!r} is {dtype} in {label}, but {own} in {first_label}")


def not_finite(name: str, label: str | None, dtype: str | None) -> InputError:
    """The error for a result that is not finite: because a model is not, or else because of the result's type."""
    if label is not None:
        return InputError(f"{name!r} of {label} has values that are not finite (NaN or infinity)")
    return InputError(
        f"the result for {name!r} is not finite: it does not fit {dtype}, or the method has no value there"
    )
