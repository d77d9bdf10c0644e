"""Methods that are weighted sums of whole models: means, interpolation paths, task arithmetic, fusing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from ratfast.averaging.combination import Combination, Mix, Rows
from ratfast.averaging.methods.arguments import number, numbers, split_base, spread, whole
from ratfast.averaging.rules import check_weights
from ratfast.errors import InputError


def uniform(rows: Rows) -> Combination:
    """The mean, `1/N sum x_n`: the uniform soup of arXiv 2203.05482, and Model Ratatouille's average.

    Returns:
        One output.
    """
    return Combination.mix(rows, [check_weights(None, len(rows))])


def weighted(
    rows: Rows,
    *,
    weights: Iterable[float] | None = None,
    weights_for: Mapping[str, Iterable[float]] | None = None,
) -> Combination:
    """The weighted sum `sum w_n x_n`; the weights need not sum to 1.

    Args:
        rows: the models.
        weights: one for each model; by default 1 / N.
        weights_for: other weights for the tensors whose names match a pattern of `fnmatch`, such as
            `{"*.classifier.*": [0.2, 0.8]}`; where several match, the last of them counts.

    Returns:
        One output.

    Raises:
        InputError: weights are not one finite number for each model, or a pattern matches no parameter.
    """
    plain = tuple(check_weights(weights, len(rows)))
    combination = Combination.mix(rows, [plain])
    steps = dict(combination.steps)
    for pattern, own in (weights_for or {}).items():
        matching = [name for name in rows.parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise InputError(f"the pattern {pattern!r} matches no parameter, such as {_example(rows)}")
        try:
            step = Mix((tuple(check_weights(own, len(rows))),))
        except InputError as error:
            raise InputError(f"for the pattern {pattern!r}: {error}") from None
        steps.update(dict.fromkeys(matching, step))
    return Combination(steps, combination.weights)


def wise_ft(rows: Rows, *, base: int = 0, alpha: float | Sequence[float] = 0.5) -> Combination:
    """WiSE-FT (arXiv 2109.01903): `(1 - alpha) x_base + alpha x`, from a zero-shot model to its fine-tuning.

    Args:
        rows: two models.
        base: which of them is the zero-shot one.
        alpha: the place on the line, or several.

    Returns:
        An output for each alpha.

    Raises:
        InputError: there are not exactly two models, or an alpha is no finite number.
    """
    base, (other,) = split_base(rows, base, "wise-ft", 1, 1)
    places = numbers("alpha", alpha)
    return Combination.mix(rows, [spread(len(rows), (base, other), (1.0 - a, a)) for a in places], places)


def path(rows: Rows, *, points: int = 11) -> Combination:
    """Evenly spaced points on the line through the models in their order: `(1 - s) x_i + s x_(i+1)`.

    With two models these are the points of linear mode connectivity (arXiv 1912.05671).

    Args:
        rows: at least two models.
        points: how many, the first and the last model included.

    Returns:
        An output for each point; its place goes from 0 to N - 1, where i is model i.

    Raises:
        InputError: there are fewer than two models or points.
    """
    if len(rows) < 2:
        raise InputError("path needs at least two models to go between, but there is one")
    count = whole("points", points, 2)
    places, weights = [], []
    for k in range(count):
        place = k * (len(rows) - 1) / (count - 1)
        start = min(int(place), len(rows) - 2)
        places.append(place)
        weights.append(spread(len(rows), (start, start + 1), (1.0 - (place - start), place - start)))
    return Combination.mix(rows, weights, places)


def fusing(rows: Rows, *, seed: int = 0, spread_by: float | None = None) -> Combination:
    """Fusing at initialisation (arXiv 2204.03044, as in Model Ratatouille's code): a sum with random coefficients.

    `sum l_n x_n` with `l_n = exp(r u_n) / sum exp(r u_m)`, u uniform on (0, 1), drawn by Python's generator.

    Args:
        rows: the models.
        seed: of the draw.
        spread_by: r; 0 is the mean. By default that of Model Ratatouille's code.

    Returns:
        One output.

    Raises:
        InputError: an option is out of range.
    """
    from ratfast.protocol import FUSING_RANGE, fusing_coefficients  # which needs numpy, as plain sums do not

    exponent = FUSING_RANGE if spread_by is None else number("spread_by", spread_by)
    coefficients = fusing_coefficients(whole("seed", seed, 0), len(rows), exponent)
    return Combination.mix(rows, [coefficients])


def task_arithmetic(
    rows: Rows, *, base: int = 0, weights: Iterable[float] | None = None, scale: float = 1.0
) -> Combination:
    """Task arithmetic (arXiv 2212.04089): `x_base + scale * sum w_n (x_n - x_base)`.

    Args:
        rows: a base and at least one fine-tuning of it.
        base: index of the base.
        weights: one for each other model, by default 1; a negative one forgets a task.
        scale: of the sum of task vectors.

    Returns:
        One output. Buffers that are averaged are so by the mean of the fine-tunings.

    Raises:
        InputError: an option is out of range, or there are too few models.
    """
    base, others = split_base(rows, base, "task-arithmetic", 1)
    factor = number("scale", scale)
    own = [1.0] * len(others) if weights is None else check_weights(weights, len(others))
    row = spread(len(rows), others, [factor * weight for weight in own])
    row[base] = 1.0 - factor * sum(own)
    mean = tuple(spread(len(rows), others, check_weights(None, len(others))))
    return Combination(Combination.mix(rows, [row]).steps, (mean,))


def _example(rows: Rows) -> str:
    return repr(rows.parameters[0]) if rows.parameters else "none, for there is no parameter"
