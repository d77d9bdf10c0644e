"""All analyses of one training, from predictions that are made once, as one JSON file beside its summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ratfast import checkpoints
from ratfast.analysis.experiments import (
    domains,
    interpolation,
    pairs,
    subsets_by_size,
    subsets_by_sources,
)
from ratfast.analysis.networks import Networks, is_run, open_networks
from ratfast.analysis.plain import plain
from ratfast.analysis.scores import accuracies
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.version import __version__

ANALYSIS = "analysis.json"
"""The file in the output folder of a training."""

_MOST_SOURCES = 3  # that curves are drawn between


@dataclass(frozen=True)
class Settings:
    """How thorough the analyses are.

    Attributes:
        points: of each curve.
        draws: subsets of each size.
        bootstrap: draws of images for the intervals of curves.
        seed: of all draws.
    """

    points: int = 11
    draws: int = 10
    bootstrap: int = 1000
    seed: int = 0


def analyse_run(
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    **opening: Any,
) -> dict[str, Any]:
    """All analyses of the members of a finished training, written to `analysis.json` in its folder.

    Args:
        folder: the output folder of ratfast-train.
        settings: how thorough.
        opening: further arguments of `ratfast.analysis.networks.open_networks`, such as `trial`, `data_dir`
            and `display`.

    Returns:
        The content of the file: `version`, `settings`, `networks` (file, name, source, sha256), `in_domain`,
        `out_of_domain`, `curves`, `pairs`, `by_size`, `by_sources` (or None), `domains`; see the dataclasses of
        `ratfast.analysis.experiments`.

    Raises:
        InputError: the folder holds no finished training, or its checkpoints or images cannot be used.
    """
    settings = settings or Settings()
    if not is_run(folder):
        raise InputError(f"{os.fspath(folder)} holds no {records.SUMMARY}, expected the output of a training")
    networks = open_networks([folder], **opening)
    if len(networks.names) < 2:
        raise InputError(f"{os.fspath(folder)} has one member only, expected at least two to compare")
    files = [Path(folder) / name / records.CHECKPOINT for name in networks.names]
    by_size = subsets_by_size(networks, draws=settings.draws, seed=settings.seed)
    by_sources = subsets_by_sources(networks, draws=settings.draws, seed=settings.seed)
    result = {
        "version": __version__,
        "settings": settings,
        "networks": [
            {"name": name, "source": source, "file": f"{name}/{records.CHECKPOINT}", "sha256": digest}
            for name, source, digest in zip(
                networks.names,
                networks.sources,
                checkpoints.sha256_files(files, os.cpu_count() or 1),
                strict=True,
            )
        ],
        "in_domain": networks.in_domain,
        "out_of_domain": networks.out_of_domain,
        "curves": [
            interpolation(
                networks, chosen, points=settings.points, draws=settings.bootstrap, seed=settings.seed
            )
            for chosen in _paths(networks)
        ],
        "pairs": pairs(networks),
        "by_size": {
            "results": by_size.results,
            "growth": by_size.growth(),
            "comparisons": by_size.comparisons(),
        },
        "by_sources": by_sources
        and {"results": by_sources.results, "growth": by_sources.growth_by_sources()},
        "domains": domains(networks, by_size),
    }
    values: dict[str, Any] = plain(result)
    records.write_json(Path(folder) / ANALYSIS, values)
    return values


def compare_networks(
    folder: str | os.PathLike[str], analysis: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Whether the networks of a folder are still those that an analysis is of.

    Args:
        folder: the output folder of a training.
        analysis: the content of its `analysis.json`.

    Returns:
        The files of the analysis's networks that hold something else by now, and those that are not there.
    """
    recorded = {}
    networks = analysis.get("networks")
    for network in networks if isinstance(networks, list) else ():
        if isinstance(network, dict) and isinstance(network.get("file"), str):
            recorded[network["file"]] = network.get("sha256")
    there = [name for name in recorded if (Path(folder) / name).is_file()]
    digests = checkpoints.sha256_files([Path(folder) / name for name in there], os.cpu_count() or 1)
    changed = [name for name, digest in zip(there, digests, strict=True) if digest != recorded[name]]
    return changed, [name for name in recorded if name not in there]


def _paths(networks: Networks) -> list[list[int]]:
    """Pairs, and where there are three the triple, of the best members of the first sources."""
    assert networks.in_domain is not None  # of a training
    images = networks.predictor.sets[networks.in_domain]
    found = networks.predictor.members[networks.in_domain].predictions == images.labels
    scores = accuracies(found, images.shares)
    best: dict[str, int] = {}
    for index, source in enumerate(networks.sources):
        if source not in best or scores[index] > scores[best[source]]:
            best[source] = index
    chosen = list(best.values())[:_MOST_SOURCES]
    if len(chosen) < 2:  # one source: its first two members
        chosen = [0, 1]
    paths = [list(pair) for pair in combinations(chosen, 2)]
    return paths + ([chosen] if len(chosen) > 2 else [])
