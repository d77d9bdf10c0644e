"""Accuracy from which images are classified right, and its bootstrap over the images. Arrays only.

Everywhere in this package `correct` is a boolean array (K, I), a row for each of K networks, a column for each of I
images, and `shares` (I,) are the images' shares of the accuracy, which sum to 1: 1 / I each where None is given.
Shares that are not equal give the mean over several domains, as DomainBed's validation accuracy is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ratfast.errors import InputError

_TINY = 1e-12  # what rounding alone makes of differences of accuracies


def domain_shares(counts: Sequence[int]) -> np.ndarray:
    """Shares with which every domain counts the same, however many images it has.

    Args:
        counts: images of each domain, whose images follow each other.

    Returns:
        (sum of counts,) float64.
    """
    return np.concatenate([np.full(count, 1 / (len(counts) * count)) for count in counts])


def as_correct(correct: np.ndarray) -> np.ndarray:
    """`correct` as a boolean array (K, I).

    Raises:
        InputError: it is not two-dimensional or there are no images.
    """
    correct = np.asarray(correct)
    if correct.ndim != 2 or correct.shape[1] == 0:
        raise InputError(
            f"the outcomes have the shape {correct.shape}, expected (networks, images) with an image"
        )
    return correct.astype(bool, copy=False)


def accuracies(correct: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """The accuracy of each network.

    Args:
        correct: (K, I) bool.
        shares: (I,) or None.

    Returns:
        (K,) float64; equal rows give equal numbers, to the bit.
    """
    correct = as_correct(correct)
    if shares is None:
        return correct.sum(1) / correct.shape[1]
    # Row by row, since a matrix product may sum each row in another order.
    return np.where(correct, np.asarray(shares, float), 0.0).sum(1)


def bootstrap(
    correct: np.ndarray, shares: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """Accuracies on images drawn with replacement (Efron, 1979), the same images for all networks.

    Args:
        correct: (K, I) bool.
        shares: (I,) or None.
        draws: how often the images are drawn.
        seed: of the draws.

    Returns:
        (draws, K) float64.
    """
    correct = as_correct(correct)
    images = correct.shape[1]
    weights = np.ones(images) if shares is None else np.asarray(shares, float)
    outcomes = correct.astype(float)
    random = np.random.default_rng(seed)
    result = np.empty((draws, len(correct)))
    for draw in range(draws):
        drawn = np.bincount(random.integers(0, images, images), minlength=images) * weights
        result[draw] = outcomes @ drawn / drawn.sum()
    return result


def interval(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval over the first axis; what rounding makes of 0 is 0."""
    outside = (1 - level) / 2
    low, high = np.quantile(values, [outside, 1 - outside], axis=0)
    return rounded(low), rounded(high)


def rounded(values: np.ndarray) -> np.ndarray:
    """Differences of accuracies without what rounding makes of 0."""
    return np.where(np.abs(values) < _TINY, 0.0, values)
