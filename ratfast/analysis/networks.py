"""What is analysed, on which images: the networks in checkpoint files, or in the output folder of a training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ratfast import checkpoints, config, data, protocol
from ratfast.analysis.predictions import ImageSet, Predictor
from ratfast.averaging import Pool
from ratfast.errors import InputError
from ratfast.train import host, records
from ratfast.train.checkpoint_accuracy import build_network, fill_network

VALIDATION = "validation"
"""The set of the training domains' validation images, each domain of which counts the same."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Networks:
    """Networks with images.

    Attributes:
        names: N of them.
        sources: what each started from; its own name where that is not known.
        predictor: of the networks.
        in_domain: name of the set of images from domains that the networks were trained on, None if not known.
        out_of_domain: name of the set of a domain that they have not seen, None if not known.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    predictor: Predictor
    in_domain: str | None = None
    out_of_domain: str | None = None


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the output folder of a training that has finished."""
    return (Path(path) / records.SUMMARY).is_file()


def open_networks(
    paths: Sequence[str | os.PathLike[str]],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    domains: Sequence[str] = (),
    in_domains: Sequence[str] = (),
    trial: int | None = None,
    members: Sequence[int] | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    buffers: str = "error",
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Networks:
    """Opens networks and decodes the images to analyse them on.

    Args:
        paths: checkpoint files, folders of them or patterns; or one output folder of ratfast-train, whose members are
            taken, on the validation images of their training and on the domain held out from it.
        data_dir: folder that holds the data sets; for an output folder where its recipe says.
        dataset: name of the data set's folder; for an output folder its recipe's.
        domains: each a set of its own, all images of it; by index or name. By default all, or the held-out domain.
        in_domains: those of `domains` that count as seen in training, together one set.
        trial: of an output folder: its trial seed; by default the first.
        members: of an output folder: numbers of its members, from 0; all by default.
        backbone: name of the network, where the checkpoints do not say.
        image_size: pixels, where the checkpoints do not say.
        buffers: as in `ratfast.average`, for the averages.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32` or `bfloat16`.
        progress: told how far it is.

    Raises:
        InputError: a checkpoint, the data set or a domain is wrong, or something is not given.
    """
    where = host.find_device(device)
    host.prepare(where, None)
    images = _Images(where, progress)
    sources: Sequence[str]
    if len(paths) == 1 and is_run(paths[0]):
        if in_domains:
            raise InputError(
                f"{paths[0]} is the output of a training, which says itself which domains it has seen, "
                "expected no in-domains"
            )
        run = _Run(Path(paths[0]), trial, members)
        names, sources, files = run.names, run.sources, run.files
        dataset = dataset or run.recipe.data.target
        root = Path(data_dir or run.recipe.data.dir) / dataset
        scanned = data.scan(root)
        network = build_network(files[0], scanned, backbone, image_size)
        sets = run.sets(scanned, domains, partial(images.decoded, scanned, network.image_size))
        in_domain, out_of_domain = VALIDATION, list(sets)[1]
    else:
        if data_dir is None or dataset is None:
            raise InputError(
                "the images are not given, expected --data-dir and --dataset (only the output folder of a training "
                "says itself where they are)"
            )
        for given, what in ((trial, "trial"), (members, "members")):
            if given is not None:
                raise InputError(
                    f"{what} is for the output folder of a training, expected none with checkpoint files"
                )
        files = checkpoints.find_checkpoints(paths)
        names = sources = [os.fspath(file) for file in files]
        scanned = data.scan(Path(data_dir) / dataset)
        network = build_network(files[0], scanned, backbone, image_size)
        decoded = partial(images.decoded, scanned, network.image_size)
        sets, in_domain, out_of_domain = _named_sets(scanned, domains, in_domains, decoded)
    fill_network(network, checkpoints.load(files[0]), files[0])
    network.to(where, memory_format=torch.channels_last)
    predictor = Predictor(
        Pool.open(files, where, buffers=buffers),
        network,
        sets,
        host.find_precision(precision, where),
        None if progress is None else partial(progress, "evaluating networks"),
    )
    return Networks(tuple(names), tuple(sources), predictor, in_domain, out_of_domain)


class _Images:
    """Decodes each domain once."""

    def __init__(self, device: torch.device, progress: Progress | None):
        self._device = device
        self._progress = progress
        told = None if progress is None else partial(progress, "decoding images")
        self._cache = data.DecodedCache(device=device, progress=told)

    def decoded(
        self, dataset: data.DomainDataset, image_size: int, chosen: Sequence[tuple[int, Any]]
    ) -> ImageSet:
        """The set of some domains, each with the indices of its images or None for all."""
        parts = []
        for domain, indices in chosen:
            entry = dataset.domains[domain]
            paths = entry.paths if indices is None else [entry.paths[index] for index in indices]
            told = None if self._progress is None else partial(self._progress, "checking images")
            data.check_images(paths, progress=told)
            pixels = self._cache.get(dataset, domain, image_size, indices)
            labels = entry.labels if indices is None else entry.labels[indices]
            parts.append((pixels, torch.as_tensor(labels, device=self._device)))
        return ImageSet(tuple(parts))


class _Run:
    """The members of one trial of a finished training, found below its folder wherever that has been moved."""

    def __init__(self, folder: Path, trial: int | None, members: Sequence[int] | None):
        self.folder = folder
        self.recipe = config.load(folder / records.RECIPE)
        if self.recipe.data.dir is None or self.recipe.data.target is None:
            raise InputError(f"{folder / records.RECIPE} lacks data.dir or data.target, expected both")
        summary = read_object(folder / records.SUMMARY)
        try:
            found = [(member["name"], member["initialisation"]) for member in summary["members"]]
        except (KeyError, TypeError):
            raise InputError(
                f"{folder / records.SUMMARY} does not list its members, expected names and initialisations"
            ) from None
        self.trial = self.recipe.train.seed if trial is None else trial
        own = [pair for pair in found if pair[0].startswith(f"target/trial{self.trial}/")]
        if not own:
            raise InputError(f"{folder} has no members of trial {self.trial}, expected one of its trials")
        if members is not None:
            if not members or len(set(members)) < len(members) or not set(members) <= set(range(len(own))):
                raise InputError(
                    f"the members are {list(members)}, expected different numbers from 0 to {len(own) - 1}"
                )
            own = [own[index] for index in members]
        self.names = [name for name, _ in own]
        self.sources = [source for _, source in own]
        self.files = [folder / name / records.CHECKPOINT for name in self.names]

    def sets(
        self,
        dataset: data.DomainDataset,
        domains: Sequence[str],
        decoded: Callable[[Sequence[tuple[int, Any]]], ImageSet],
    ) -> dict[str, ImageSet]:
        """The validation images of the training domains, then each named domain, or the held-out one."""
        held_out = dataset.domain_index(self.recipe.data.test_env)
        validation = []
        for index, domain in enumerate(dataset.domains):
            if index != held_out:
                _, out = protocol.split(len(domain), self.recipe.data.holdout_fraction, self.trial, index)
                validation.append((index, out))
        tested = [dataset.domain_index(name) for name in domains] or [held_out]
        return {VALIDATION: decoded(validation)} | {
            dataset.domains[index].name: decoded([(index, None)]) for index in tested
        }


def _named_sets(
    dataset: data.DomainDataset,
    domains: Sequence[str],
    in_domains: Sequence[str],
    decoded: Callable[[Sequence[tuple[int, Any]]], ImageSet],
) -> tuple[dict[str, ImageSet], str | None, str | None]:
    """The sets of domains that are named; those seen in training together first; and which is which."""
    seen = [dataset.domain_index(name) for name in in_domains]
    chosen = [dataset.domain_index(name) for name in domains]
    chosen = chosen or [index for index in range(len(dataset.domains)) if index not in seen]
    if len(set(seen + chosen)) < len(seen + chosen):
        raise InputError("a domain is named twice, expected each domain once")
    sets = {}
    if seen:
        sets["in-domain"] = decoded([(index, None) for index in seen])
    for index in chosen:
        sets[dataset.domains[index].name] = decoded([(index, None)])
    names = list(sets)
    return sets, (names[0] if seen else None), (names[1] if seen and len(names) > 1 else None)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of an output folder.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value
