"""Methods that reduce each element over the models: Fisher-weighted and geometric means, minimum, maximum."""

from __future__ import annotations

from collections.abc import Iterable

from ratfast.averaging.combination import Column, Combination, Rows
from ratfast.averaging.methods.arguments import positive_total, spread
from ratfast.averaging.rules import check_weights
from ratfast.errors import InputError


def fisher(rows: Rows, *, weights: Iterable[float] | None = None) -> Combination:
    """Fisher-weighted averaging (arXiv 2111.09832): `sum w_n f_n x_n / sum w_n f_n`, element by element.

    f_n is the diagonal of model n's Fisher information. Where the divisor is 0, the element is `sum w_n x_n / sum
    w_n`.

    Args:
        rows: N models, then N models that hold their Fisher diagonals.
        weights: w, one for each of the first N, none of them negative; by default 1 / N.

    Returns:
        One output. Buffers that are averaged are so by w.

    Raises:
        InputError: the number of models and diagonals differ, or a weight is out of range.
    """
    count = len(rows) // 2
    if len(rows) % 2 or count == 0:
        raise InputError(
            f"fisher needs a Fisher diagonal for each model, but there are {len(rows)} of both in all"
        )
    own = positive_total(weights, count, "fisher")
    models = tuple(range(2 * count))
    return _column(rows, "fisher", models, own, spread(len(rows), range(count), own))


def geometric(rows: Rows, *, weights: Iterable[float] | None = None) -> Combination:
    """The weighted geometric mean of magnitudes: `sign(sum w_n x_n) * exp(sum w_n ln |x_n|)`; 0 where any x_n is 0.

    One of the merging operators in Model Ratatouille's appendix. Computed with log and exp, it is the one method whose
    last bits differ between a GPU and a CPU.

    Args:
        rows: the models.
        weights: w, none of them negative, scaled to a sum of 1; by default 1 / N.

    Returns:
        One output. Buffers that are averaged are so by w.

    Raises:
        InputError: a weight is out of range.
    """
    own = positive_total(weights, len(rows), "geometric")
    counted = [n for n, weight in enumerate(own) if weight != 0.0]
    return _column(rows, "geometric", tuple(counted), [own[n] for n in counted], own)


def minimum(rows: Rows) -> Combination:
    """The smallest value of each element, `min x_n`; NaN if one of them is. Buffers that are averaged: their mean.

    Returns:
        One output.
    """
    return _extreme(rows, "min")


def maximum(rows: Rows) -> Combination:
    """The largest value of each element, `max x_n`; NaN if one of them is. Buffers that are averaged: their mean.

    Returns:
        One output.
    """
    return _extreme(rows, "max")


def _extreme(rows: Rows, kind: str) -> Combination:
    mean = check_weights(None, len(rows))
    return _column(rows, kind, tuple(range(len(rows))), mean, mean)


def _column(
    rows: Rows, kind: str, models: tuple[int, ...], weights: list[float], for_buffers: list[float]
) -> Combination:
    step = Column(kind, models, tuple(weights))
    return Combination(dict.fromkeys(rows.parameters, step), (tuple(for_buffers),))
