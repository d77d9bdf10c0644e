"""Random subsets of networks, and how many of them to average: which ones, and what came out. Arrays only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ratfast.errors import InputError

Subset = tuple[int, ...]
"""Indices of networks, rising."""

_TRIES = 50  # for each subset that is to differ from those before


@dataclass(frozen=True)
class Spread:
    """Numbers over random subsets.

    Attributes:
        mean: of the draws.
        std: standard deviation over the draws, with N - 1; None where there is one draw.
        standard_error: of the mean, std / sqrt(draws); None where there is one draw. Subsets of one pool overlap, so
            that it says how far the draws settle the mean for this pool, not what another pool would give.
        draws: their number.
    """

    mean: float
    std: float | None
    standard_error: float | None
    draws: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error of some numbers, at least one."""
    numbers = np.asarray(values, float)
    count = len(numbers)
    if count == 0:
        raise InputError("there are no numbers to take the mean of")
    std = float(numbers.std(ddof=1)) if count > 1 else None
    error = None if std is None else std / math.sqrt(count)
    return Spread(float(numbers.mean()), std, error, count)


def random_subsets(count: int, size: int, draws: int, seed: int = 0) -> list[Subset]:
    """Different subsets of `size` out of `count` networks; all there are, in order, if these are no more than `draws`.

    Raises:
        InputError: there are no such subsets, or `draws` is below 1.
    """
    if not 1 <= size <= count:
        raise InputError(f"there are no {size} of {count} networks, expected from 1 to {count}")
    _check_draws(draws)
    if math.comb(count, size) <= draws:
        return list(combinations(range(count), size))
    random = np.random.default_rng([seed, size])
    found: dict[Subset, None] = {}
    while len(found) < draws:
        found[tuple(sorted(random.permutation(count)[:size].tolist()))] = None
    return list(found)


def source_subsets(
    sources: Sequence[str], number: int, size: int | None = None, *, draws: int, seed: int = 0
) -> list[Subset]:
    """Random subsets of a fixed size whose members start from exactly `number` sources, spread evenly over them.

    As for the figure of accuracy against the number of auxiliary sources in "Model Ratatouille" (arXiv 2212.10445):
    the size stays the same, so that what grows is the diversity of the initialisations alone.

    Args:
        sources: what each network started from.
        number: of different sources in a subset.
        size: of a subset; by default that of the smallest source, or `number` if that is larger.
        draws: most subsets; fewer if no more different ones are found.
        seed: of the draws.

    Raises:
        InputError: there are fewer sources, fewer members than sources are asked for, or a source has too few
            networks.
    """
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(source, []).append(index)
    _check_draws(draws)
    smallest = min((len(group) for group in groups.values()), default=0)
    size = max(smallest, number) if size is None else size
    if not 1 <= number <= len(groups):
        raise InputError(f"there are no {number} sources, expected from 1 to {len(groups)}")
    if size < number:
        raise InputError(f"{size} networks cannot start from {number} sources, expected at least as many")
    if math.ceil(size / number) > smallest:
        raise InputError(
            f"{size} networks of {number} sources are up to {math.ceil(size / number)} of one source, "
            f"and the smallest source has {smallest}"
        )
    random = np.random.default_rng([seed, number, size])
    names = list(groups)
    found: dict[Subset, None] = {}
    for _ in range(draws * _TRIES):
        chosen: list[int] = []
        for place, which in enumerate(random.permutation(len(names))[:number].tolist()):
            share = size // number + (place < size % number)  # the order is random, so who gets more is
            chosen += random.permutation(groups[names[which]])[:share].tolist()
        found[tuple(sorted(chosen))] = None
        if len(found) == draws:
            break
    return list(found)


def uniform_weights(subsets: Sequence[Subset], count: int) -> np.ndarray:
    """The weights of the averages of subsets of `count` networks, (number of subsets, count) float64."""
    weights = np.zeros((len(subsets), count))
    for row, members in zip(weights, subsets, strict=True):
        row[list(members)] = 1 / len(members)
    return weights


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise InputError(f"{draws} subsets were asked for, expected at least 1")
