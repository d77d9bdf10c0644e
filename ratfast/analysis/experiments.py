"""Analyses of networks on images: which averages each one needs, and what is made of their predictions.

Everything is by set of images. Results are dataclasses of arrays and numbers; `ratfast.analysis.plain.plain` gives
their JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratfast.analysis.averages import Averaged, Comparison, Growth, averaged, comparison, growth
from ratfast.analysis.curves import Curve, curve, even_positions, path_weights
from ratfast.analysis.diversity import Diversity, diversity
from ratfast.analysis.lines import Line, fit_line
from ratfast.analysis.networks import Networks
from ratfast.analysis.scores import accuracies
from ratfast.analysis.similarity import linear_cka, rbf_cka
from ratfast.analysis.subsets import Subset, random_subsets, source_subsets, uniform_weights
from ratfast.errors import InputError

_SIZES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100)


@dataclass(frozen=True)
class Interpolation:
    """The path between some networks.

    Attributes:
        networks: their names; the last one's weight is lambda, the others share the rest.
        curves: by set of images.
    """

    networks: tuple[str, ...]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Pairs:
    """All pairs of networks.

    Attributes:
        networks: their names.
        diversity: by set of images.
        linear_cka: by set of images, (N, N).
        rbf_cka: likewise.
    """

    networks: tuple[str, ...]
    diversity: dict[str, Diversity]
    linear_cka: dict[str, np.ndarray]
    rbf_cka: dict[str, np.ndarray]


@dataclass(frozen=True)
class Subsets:
    """Averages of subsets of networks.

    Attributes:
        networks: their names.
        sources: what each network started from.
        results: by set of images, one for each subset.
    """

    networks: tuple[str, ...]
    sources: tuple[str, ...]
    results: dict[str, list[Averaged]]

    def growth(self) -> dict[str, Growth]:
        """Accuracy against the number of averaged networks, by set of images."""
        return {
            name: growth(found, lambda result: len(result.members)) for name, found in self.results.items()
        }

    def growth_by_sources(self) -> dict[str, Growth]:
        """Accuracy against the number of different sources, by set of images."""

        def number(result: Averaged) -> int:
            return len({self.sources[index] for index in result.members})

        return {name: growth(found, number) for name, found in self.results.items()}

    def comparisons(self) -> dict[str, Comparison]:
        """Averages against ensembles and diversity, by set of images."""
        return {name: comparison(found) for name, found in self.results.items()}


@dataclass(frozen=True)
class Domains:
    """In-domain against out-of-domain accuracy of networks and of averages.

    Attributes:
        in_domain: name of the set of images.
        out_of_domain: likewise.
        networks: (N, 2) accuracies of the networks, in and out of domain.
        averages: (S, 2) of averages of two or more.
        line_of_networks: through the first.
        line_of_averages: through the second.
    """

    in_domain: str
    out_of_domain: str
    networks: np.ndarray
    averages: np.ndarray
    line_of_networks: Line | None
    line_of_averages: Line | None


def interpolation(
    networks: Networks,
    chosen: Sequence[int] | None = None,
    *,
    points: int = 11,
    draws: int = 1000,
    seed: int = 0,
) -> Interpolation:
    """Accuracy along the path between two or more networks.

    Args:
        networks: of which some are taken.
        chosen: their indices; all by default.
        points: of the curve, its ends included.
        draws: of the bootstrap over images.
        seed: of the draws.

    Raises:
        InputError: fewer than two networks or points, or one network that is not there.
    """
    count = len(networks.names)
    chosen = list(range(count)) if chosen is None else list(chosen)
    if not set(chosen) <= set(range(count)):
        raise InputError(f"the networks of the curve are {chosen}, expected numbers from 0 to {count - 1}")
    positions = even_positions(points)
    weights = np.zeros((points, count))
    for column, index in enumerate(chosen):  # += since a network may stand at both ends
        weights[:, index] += path_weights(len(chosen), positions)[:, column]
    predictor = networks.predictor
    curves = {
        name: curve(
            predictions == predictor.sets[name].labels,
            positions,
            predictor.sets[name].shares,
            draws=draws,
            seed=seed,
        )
        for name, predictions in predictor.predictions(weights).items()
    }
    return Interpolation(tuple(networks.names[index] for index in chosen), curves)


def pairs(networks: Networks) -> Pairs:
    """Diversity and similarity of all pairs of networks.

    Raises:
        InputError: there are fewer than two.
    """
    if len(networks.names) < 2:
        raise InputError("one network alone has no diversity, expected at least two")
    sets, outputs = networks.predictor.sets, networks.predictor.members
    return Pairs(
        networks.names,
        {
            name: diversity(found.predictions, sets[name].labels, sets[name].shares)
            for name, found in outputs.items()
        },
        {name: linear_cka(found.features) for name, found in outputs.items()},
        {name: rbf_cka(found.features) for name, found in outputs.items()},
    )


def default_sizes(count: int) -> list[int]:
    """Numbers of networks to average, up to all of them: every small one, fewer of the larger."""
    return [*(size for size in _SIZES if size < count), count]


def subsets_by_size(
    networks: Networks, sizes: Sequence[int] | None = None, *, draws: int = 10, seed: int = 0
) -> Subsets:
    """Averages of random subsets of each size.

    Args:
        networks: to choose from.
        sizes: numbers of networks; by default 1, 2, 3 ... up to all of them.
        draws: most subsets of each size; of size 1 all are taken, which are predicted anyhow.
        seed: of the draws.

    Raises:
        InputError: a size is not possible.
    """
    count = len(networks.names)
    chosen: list[Subset] = []
    for size in default_sizes(count) if sizes is None else sorted(set(sizes)):
        chosen += random_subsets(count, size, max(draws, count) if size == 1 else draws, seed)
    return _evaluated(networks, chosen)


def subsets_by_sources(
    networks: Networks, size: int | None = None, *, draws: int = 10, seed: int = 0
) -> Subsets | None:
    """Averages of random subsets of one size, from 1, 2, 3 ... sources.

    Args:
        networks: to choose from.
        size: networks in each subset; by default as many as the smallest source has.
        draws: most subsets of each number of sources.
        seed: of the draws.

    Returns:
        None where the networks start from one source only, or none has more than one network.

    Raises:
        InputError: a source has too few networks for that size.
    """
    counts = [networks.sources.count(source) for source in dict.fromkeys(networks.sources)]
    size = min(counts) if size is None else size
    if len(counts) < 2 or size < 2:
        return None
    chosen: list[Subset] = []
    for number in range(1, min(len(counts), size) + 1):
        chosen += source_subsets(networks.sources, number, size, draws=draws, seed=seed)
    return _evaluated(networks, chosen)


def domains(networks: Networks, subsets: Subsets) -> Domains:
    """In-domain against out-of-domain accuracy of the networks and of the averages of subsets.

    Raises:
        InputError: it is not known which images are in and out of domain.
    """
    inside, outside = networks.in_domain, networks.out_of_domain
    if inside is None or outside is None:
        raise InputError(
            "it is not known which domains the networks were trained on, expected the output folder of a training, "
            "or --in-domain and another domain"
        )
    predictor = networks.predictor
    own = np.stack(
        [
            accuracies(
                predictor.members[name].predictions == predictor.sets[name].labels,
                predictor.sets[name].shares,
            )
            for name in (inside, outside)
        ],
        axis=1,
    )
    averages = np.array(
        [
            (a.average, b.average)
            for a, b in zip(subsets.results[inside], subsets.results[outside], strict=True)
            if len(a.members) > 1
        ]
    ).reshape(-1, 2)
    return Domains(inside, outside, own, averages, fit_line(*own.T), fit_line(*averages.T))


def _evaluated(networks: Networks, chosen: Sequence[Subset]) -> Subsets:
    predictor = networks.predictor
    members = predictor.members
    soups = predictor.predictions(uniform_weights(chosen, len(networks.names)))
    localities = predictor.localities(chosen)
    results = {
        name: averaged(
            chosen,
            soups[name],
            members[name].predictions,
            members[name].probabilities,
            images.labels,
            localities,
            images.shares,
        )
        for name, images in predictor.sets.items()
    }
    return Subsets(networks.names, networks.sources, results)
