"""Methods that look at the angles between models: SLERP and model stock. They need one pass for the Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ratfast.averaging.combination import Combination, Mix, Rows
from ratfast.averaging.methods.arguments import numbers, split_base, spread
from ratfast.averaging.rules import check_weights
from ratfast.errors import InputError

if TYPE_CHECKING:
    import numpy as np

_PARALLEL = 1e-6  # radians; below this, the chord is the arc to float64's precision


def slerp(rows: Rows, *, alpha: float | Sequence[float] = 0.5, per_tensor: bool = True) -> Combination:
    """Spherical linear interpolation (Shoemake 1985): `sin((1-a) t) / sin t * x_0 + sin(a t) / sin t * x_1`.

    t is the angle between the models, `cos t = <x_0, x_1> / |x_0| |x_1|`. Where they are parallel (or one is 0) it is
    the straight line.

    Args:
        rows: two models.
        alpha: a, the place on the arc, or several.
        per_tensor: an angle for each tensor; or one for all parameters as one vector.

    Returns:
        An output for each alpha.

    Raises:
        InputError: there are not exactly two models, an alpha is no finite number, or two tensors are opposite.
    """
    if len(rows) != 2:
        raise InputError(f"slerp needs exactly 2 models, but there are {len(rows)}")
    places = numbers("alpha", alpha)
    grams = _grams(rows, per_tensor)
    steps: dict[str, Mix] = {}
    for name, gram in zip(rows.parameters, grams, strict=True):
        angle = math.acos(_cosine(gram[0, 1], gram[0, 0], gram[1, 1]))
        if math.pi - angle < _PARALLEL:
            raise InputError(
                f"{name!r} of {rows.names[1]} is opposite to that of {rows.names[0]}: no arc joins them"
            )
        steps[name] = Mix(tuple(_arc(angle, place) for place in places))
    return Combination(steps, tuple((1.0 - place, place) for place in places), tuple(places))


def model_stock(rows: Rows, *, base: int = 0, per_tensor: bool = True) -> Combination:
    """Model stock (arXiv 2403.19522): `t mean + (1 - t) x_base` with `t = n cos / (1 + (n - 1) cos)`.

    cos is the mean cosine between the differences to the base of all pairs of the n fine-tunings. A negative cosine,
    at which the formula's geometry ends, counts as 0; a difference that is 0 has cosine 0 with all others.

    Args:
        rows: a base and at least two fine-tunings of it.
        base: index of the base.
        per_tensor: a ratio for each tensor, as in the paper; or one for all parameters as one vector.

    Returns:
        One output. Buffers that are averaged are so by the mean of the fine-tunings.

    Raises:
        InputError: there are too few models.
    """
    base, others = split_base(rows, base, "model-stock", 2)
    count = len(others)
    mean = spread(len(rows), others, check_weights(None, count))
    steps: dict[str, Mix] = {}
    for name, gram in zip(rows.parameters, _grams(rows, per_tensor), strict=True):
        cosine = max(0.0, _mean_cosine(gram, base, others))
        ratio = count * cosine / (1.0 + (count - 1) * cosine)
        row = [ratio * weight for weight in mean]
        row[base] = 1.0 - ratio
        steps[name] = Mix((tuple(row),))
    return Combination(steps, (tuple(mean),))


def _grams(rows: Rows, per_tensor: bool) -> np.ndarray:
    """(T, N, N); the same total for every parameter unless `per_tensor`."""
    import numpy as np

    grams = np.asarray(rows.grams())
    if not np.isfinite(grams).all():
        name = rows.parameters[int(np.argmin(np.isfinite(grams).all(axis=(1, 2))))]
        raise InputError(f"{name!r} is not finite in one of the models, so it has no angle to the others")
    if per_tensor or len(grams) == 0:
        return grams
    total = np.zeros(grams.shape[1:])
    for gram in grams:  # one by one: numpy's own order of summation depends on its version
        total = total + gram
    return np.broadcast_to(total, grams.shape)


def _cosine(product: float, square: float, other: float) -> float:
    scale = math.sqrt(max(square, 0.0)) * math.sqrt(max(other, 0.0))
    return min(1.0, max(-1.0, float(product) / scale)) if scale > 0.0 else 1.0


def _arc(angle: float, place: float) -> tuple[float, float]:
    if angle < _PARALLEL:
        return 1.0 - place, place
    return math.sin((1.0 - place) * angle) / math.sin(angle), math.sin(place * angle) / math.sin(angle)


def _mean_cosine(gram: np.ndarray, base: int, others: Sequence[int]) -> float:
    """Of all pairs of differences, whose inner products follow from those of the models."""
    total, pairs = 0.0, 0
    shift = gram[base, base]

    def product(i: int, j: int) -> float:
        return float(gram[i, j] - gram[i, base] - gram[j, base] + shift)

    for at, i in enumerate(others):
        for j in others[:at]:
            squares = product(i, i), product(j, j)
            total += _cosine(product(i, j), *squares) if min(squares) > 0.0 else 0.0
            pairs += 1
    return total / pairs
