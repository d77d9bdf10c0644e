"""Methods that drop a part of each task vector: TIES and DARE."""

from __future__ import annotations

from collections.abc import Iterable

from ratfast.averaging.combination import Column, Combination, Rows
from ratfast.averaging.methods.arguments import number, seed_number, share, split_base, spread
from ratfast.averaging.rules import check_weights


def ties(
    rows: Rows,
    *,
    base: int = 0,
    density: float = 0.2,
    weights: Iterable[float] | None = None,
    scale: float = 1.0,
    per_tensor: bool = False,
) -> Combination:
    """TIES-merging (arXiv 2306.01708): trim, elect a sign, average what agrees with it.

    With `tau_n = x_n - x_base`, all but the `density` largest |tau_n| set to 0, and s the sign of `sum w_n tau_n`:
    `x_base + scale * sum w_n tau_n / sum w_n`, both sums over the n whose tau_n has the sign s. Where the first sum
    is 0 the base stays. Magnitudes equal to the smallest that is kept are kept too.

    Args:
        rows: a base and at least one fine-tuning of it.
        base: index of the base.
        density: the share of each task vector that is kept, in (0, 1]; at least one element is.
        weights: one for each other model; by default 1 / N.
        scale: lambda.
        per_tensor: keep the share in each tensor; by default in the whole task vector, as the paper does.

    Returns:
        One output. Buffers that are averaged are so by the mean of the fine-tunings.

    Raises:
        InputError: an option is out of range, or there are too few models.
    """
    base, others = split_base(rows, base, "ties", 1)
    kept, factor = share("density", density), number("scale", scale)
    own = check_weights(weights, len(others))
    sizes = [rows.layout[name].numel for name in rows.parameters]
    counted = sizes if per_tensor else [sum(sizes)]
    counts = [min(size, max(1, int(kept * size))) for size in counted]
    if kept == 1.0 or not sizes:
        thresholds = None
    else:
        found = [rows.kth_magnitudes(n, base, counts, together=not per_tensor) for n in others]
        thresholds = [
            tuple(float(values[t if per_tensor else 0]) for values in found)
            for t in range(len(rows.parameters))
        ]
    return _steps(rows, base, others, "elect", own, factor, thresholds=thresholds)


def dare_linear(
    rows: Rows,
    *,
    base: int = 0,
    density: float = 0.5,
    weights: Iterable[float] | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Combination:
    """DARE (arXiv 2311.03099) with a weighted sum: drop elements of task vectors at random and rescale the others.

    `x_base + scale * sum w_n d_n (x_n - x_base) / density`, d_n being 1 with probability `density`, else 0. The random
    numbers are a function of the seed, the model's place among the fine-tunings, the tensor's name and the element's
    place, so that the result does not depend on the machine.

    Args:
        rows: a base and at least one fine-tuning of it.
        base: index of the base.
        density: the share that is kept, 1 - p in the paper, in (0, 1].
        weights: one for each other model; by default 1 / N.
        scale: of the sum.
        seed: of the random numbers, below 2**32.

    Returns:
        One output. Buffers that are averaged are so by the mean of the fine-tunings.

    Raises:
        InputError: an option is out of range, or there are too few models.
    """
    base, others = split_base(rows, base, "dare-linear", 1)
    own = check_weights(weights, len(others))
    return _steps(rows, base, others, "sum", own, scale, density=density, seed=seed)


def dare_ties(
    rows: Rows,
    *,
    base: int = 0,
    density: float = 0.5,
    weights: Iterable[float] | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Combination:
    """DARE (arXiv 2311.03099) in place of the trimming of TIES (arXiv 2306.01708).

    Elements are dropped and rescaled as in `dare_linear`; then, as in `ties`, a sign is elected and what agrees with
    it is averaged.

    Args:
        rows: a base and at least one fine-tuning of it.
        base: index of the base.
        density: the share that is kept, in (0, 1].
        weights: one for each other model; by default 1 / N.
        scale: lambda.
        seed: of the random numbers, below 2**32.

    Returns:
        One output. Buffers that are averaged are so by the mean of the fine-tunings.

    Raises:
        InputError: an option is out of range, or there are too few models.
    """
    base, others = split_base(rows, base, "dare-ties", 1)
    own = check_weights(weights, len(others))
    return _steps(rows, base, others, "elect", own, scale, density=density, seed=seed)


def tensor_key(name: str) -> int:
    """The key of a tensor's random numbers: 63 bits of the SHA-256 of its name."""
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def _steps(
    rows: Rows,
    base: int,
    others: list[int],
    kind: str,
    weights: list[float],
    scale: float,
    *,
    thresholds: list[tuple[float, ...]] | None = None,
    density: float = 1.0,
    seed: int = 0,
) -> Combination:
    kept, factor, start = share("density", density), number("scale", scale), seed_number(seed)
    steps = {
        name: Column(
            kind,
            tuple(others),
            tuple(weights),
            base=base,
            thresholds=None if thresholds is None else thresholds[t],
            densities=None if kept == 1.0 else (kept,) * len(others),
            streams=tuple(range(len(others))),
            key=tensor_key(name),
            seed=start,
            scale=factor,
        )
        for t, name in enumerate(rows.parameters)
    }
    return Combination(steps, (tuple(spread(len(rows), others, check_weights(None, len(others)))),))
