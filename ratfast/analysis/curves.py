"""Accuracy along a path between the weights of two or more networks, and its barrier. Arrays only.

Linear mode connectivity: Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis"
(arXiv 1912.05671); with accuracies, as hypothesis 1 of Rame et al., "Model Ratatouille" (arXiv 2212.10445), has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratfast.analysis.scores import accuracies, as_correct, bootstrap, interval, rounded
from ratfast.errors import InputError


@dataclass(frozen=True)
class Curve:
    """Accuracy along a path, with intervals over bootstrapped images.

    The drop at lambda is `(1 - lambda) acc(0) + lambda acc(1) - acc(lambda)`: how far the accuracy lies below the
    straight line between the path's own ends; below 0 where it lies above the line.

    Attributes:
        positions: (K,) lambda, from 0 to 1.
        accuracies: (K,) fractions.
        low: (K,) lower ends of the accuracies' intervals.
        high: (K,) upper ends.
        drops: (K,) at the ends 0.
        drop_low: (K,) lower ends of the drops' intervals.
        drop_high: (K,) upper ends.
        barrier: the largest drop; 0 if the curve is nowhere below the line.
        barrier_low: lower end of its interval. It is a maximum, so noise alone lifts it above 0.
        barrier_high: upper end.
        gain: the largest accuracy above the line.
        connected: no drop's interval lies above 0 as a whole: what is below the line may be chance.
        level: of the intervals.
        draws: of the bootstrap.
        images: their number.
    """

    positions: np.ndarray
    accuracies: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drops: np.ndarray
    drop_low: np.ndarray
    drop_high: np.ndarray
    barrier: float
    barrier_low: float
    barrier_high: float
    gain: float
    connected: bool
    level: float
    draws: int
    images: int


def even_positions(points: int) -> np.ndarray:
    """`points` values of lambda from 0 to 1, evenly spaced.

    Raises:
        InputError: fewer than 2.
    """
    if points < 2:
        raise InputError(f"the curve has {points} points, expected at least its 2 ends")
    return np.linspace(0.0, 1.0, points)


def path_weights(count: int, positions: Sequence[float] | np.ndarray) -> np.ndarray:
    """The weights of networks along a path: lambda for the last one, (1 - lambda) / (N - 1) for each other.

    With two networks this is the segment between them; with three it starts, as the paper's "A + B to C", at the
    average of the first two.

    Args:
        count: number N of networks, at least 2.
        positions: (K,) values of lambda.

    Returns:
        (K, N) float64, rows sum to 1.

    Raises:
        InputError: there are fewer than two networks.
    """
    if count < 2:
        raise InputError(f"{count} network has no path, expected at least two")
    positions = np.asarray(positions, float)
    others = np.repeat((1 - positions)[:, None] / (count - 1), count - 1, axis=1)
    return np.concatenate([others, positions[:, None]], axis=1)


def curve(
    correct: np.ndarray,
    positions: Sequence[float] | np.ndarray,
    shares: np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Curve:
    """The curve of the networks along a path.

    Args:
        correct: (K, I) bool, a row for each position.
        positions: (K,) lambda, rising from 0 to 1.
        shares: (I,) of the images, or None.
        draws: of images, for the intervals.
        seed: of the draws.
        level: share of the draws inside the intervals.

    Raises:
        InputError: the positions do not rise from 0 to 1, or are not one for each row.
    """
    correct = as_correct(correct)
    positions = np.asarray(positions, float)
    if len(positions) != len(correct):
        raise InputError(f"{len(positions)} positions were given for {len(correct)} networks of a curve")
    if len(positions) < 2 or positions[0] != 0 or positions[-1] != 1 or (np.diff(positions) <= 0).any():
        raise InputError(f"the positions are {positions.tolist()}, expected numbers that rise from 0 to 1")
    found = accuracies(correct, shares)
    drops = _drops(found[None], positions)[0]
    drawn = bootstrap(correct, shares, draws=draws, seed=seed)
    drawn_drops = _drops(drawn, positions)
    low, high = interval(drawn, level)
    drop_low, drop_high = interval(drawn_drops, level)
    barrier_low, barrier_high = interval(drawn_drops.max(1), level)
    return Curve(
        positions=positions,
        accuracies=found,
        low=low,
        high=high,
        drops=drops,
        drop_low=drop_low,
        drop_high=drop_high,
        barrier=float(drops.max()),
        barrier_low=float(barrier_low),
        barrier_high=float(barrier_high),
        gain=float(rounded(-drops.min())),
        connected=not (drop_low > 0).any(),
        level=level,
        draws=draws,
        images=correct.shape[1],
    )


def _drops(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(B, K) drops of B curves; the ends have none."""
    first, last = values[:, :1], values[:, -1:]
    drops = rounded(first + positions * (last - first) - values)
    drops[:, [0, -1]] = 0.0
    return drops
