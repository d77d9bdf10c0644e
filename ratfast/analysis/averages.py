"""Averages of many subsets of networks against their members and their ensembles. Arrays only.

Weight average against prediction ensemble: Wortsman et al., "Model soups" (arXiv 2203.05482); gain against diversity
and locality: Rame et al., "DiWA" (arXiv 2205.09739); accuracy against the number of averaged models and of auxiliary
sources: Rame et al., "Model Ratatouille" (arXiv 2212.10445).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ratfast.analysis.diversity import diversity
from ratfast.analysis.lines import Line, fit_line
from ratfast.analysis.scores import accuracies
from ratfast.analysis.subsets import Spread, Subset, spread
from ratfast.errors import InputError


@dataclass(frozen=True)
class Averaged:
    """What became of a subset of networks on some images; accuracies are fractions.

    Attributes:
        members: indices of the networks.
        average: accuracy of the average of their weights.
        ensemble: accuracy of the mean of their predicted probabilities (Lakshminarayanan et al., arXiv 1612.01474).
        members_mean: mean accuracy of the members.
        ratio_error: mean over pairs of members; None where there is one member.
        q: likewise.
        disagreement: likewise.
        locality: largest squared distance of a member to the average, over parameters.
    """

    members: Subset
    average: float
    ensemble: float
    members_mean: float
    ratio_error: float | None
    q: float | None
    disagreement: float | None
    locality: float

    @property
    def gain(self) -> float:
        """How far the average is above the mean of its members."""
        return self.average - self.members_mean


@dataclass(frozen=True)
class Growth:
    """Accuracy against a number: of averaged networks, or of their sources.

    Attributes:
        numbers: (K,) rising.
        average: (K,) of weights.
        ensemble: (K,) of predictions.
    """

    numbers: tuple[int, ...]
    average: tuple[Spread, ...]
    ensemble: tuple[Spread, ...]


@dataclass(frozen=True)
class Comparison:
    """Averages against ensembles, and gain against diversity, over many subsets of at least two networks.

    Attributes:
        subsets: their number.
        average: accuracy of the averages.
        ensemble: accuracy of the ensembles of the same members.
        members: mean accuracy of the members.
        wins: share of subsets whose average is better than the ensemble; equal ones count half.
        gain_on_ratio_error: the line of the gain of the average over its members against their ratio-error.
        gain_on_q: the same against 1 - Q.
        gain_by_size: the first line, for the subsets of each size.
    """

    subsets: int
    average: Spread
    ensemble: Spread
    members: Spread
    wins: float
    gain_on_ratio_error: Line | None
    gain_on_q: Line | None
    gain_by_size: dict[int, Line | None]


def averaged(
    subsets: Sequence[Subset],
    soups: np.ndarray,
    members: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    localities: Sequence[float],
    shares: np.ndarray | None = None,
) -> list[Averaged]:
    """What became of each subset.

    Args:
        subsets: S of them, of N networks.
        soups: (S, I) classes predicted by the average of each subset.
        members: (N, I) classes predicted by each network.
        probabilities: (N, I, C) predicted by each network.
        labels: (I,) true classes.
        localities: one for each subset.
        shares: (I,) of the images, or None.
    """
    of_soups = accuracies(soups == labels, shares)
    of_members = accuracies(members == labels, shares)
    together = np.stack([ensemble_predictions(probabilities, subset) for subset in subsets])
    of_ensembles = accuracies(together == labels, shares)
    pairs = diversity(members, labels, shares)
    results = []
    for place, subset in enumerate(subsets):
        measures = pairs.mean(subset) if len(subset) > 1 else {}
        results.append(
            Averaged(
                members=tuple(subset),
                average=float(of_soups[place]),
                ensemble=float(of_ensembles[place]),
                members_mean=float(of_members[list(subset)].mean()),
                ratio_error=measures.get("ratio_error"),
                q=measures.get("q"),
                disagreement=measures.get("disagreement"),
                locality=float(localities[place]),
            )
        )
    return results


def ensemble_predictions(probabilities: np.ndarray, subset: Subset) -> np.ndarray:
    """Classes (I,) of the mean of the probabilities (N, I, C) that the networks of a subset predict."""
    return np.sum([probabilities[index] for index in subset], axis=0, dtype=np.float64).argmax(1)


def growth(results: Sequence[Averaged], number: Callable[[Averaged], int]) -> Growth:
    """Accuracy against a number of each subset, such as `lambda result: len(result.members)`."""
    groups: dict[int, list[Averaged]] = {}
    for result in results:
        groups.setdefault(number(result), []).append(result)
    numbers = tuple(sorted(groups))
    return Growth(
        numbers,
        tuple(spread([result.average for result in groups[n]]) for n in numbers),
        tuple(spread([result.ensemble for result in groups[n]]) for n in numbers),
    )


def comparison(results: Sequence[Averaged]) -> Comparison:
    """Averages against ensembles and against diversity; subsets of one network are left out.

    Raises:
        InputError: there is no subset of at least two networks.
    """
    several = [result for result in results if len(result.members) > 1]
    if not several:
        raise InputError("there is no subset of two or more networks to compare")
    sizes = sorted({len(result.members) for result in several})

    def line(chosen: Sequence[Averaged], measure: Callable[[Averaged], float]) -> Line | None:
        return fit_line([measure(result) for result in chosen], [result.gain for result in chosen])

    def ratio_error(result: Averaged) -> float:
        assert result.ratio_error is not None  # of two or more networks
        return result.ratio_error

    def one_minus_q(result: Averaged) -> float:
        assert result.q is not None
        return 1 - result.q

    ahead = [float(np.sign(result.average - result.ensemble)) for result in several]
    return Comparison(
        subsets=len(several),
        average=spread([result.average for result in several]),
        ensemble=spread([result.ensemble for result in several]),
        members=spread([result.members_mean for result in several]),
        wins=float((np.mean(ahead) + 1) / 2),
        gain_on_ratio_error=line(several, ratio_error),
        gain_on_q=line(several, one_minus_q),
        gain_by_size={
            size: line([result for result in several if len(result.members) == size], ratio_error)
            for size in sizes
        },
    )
