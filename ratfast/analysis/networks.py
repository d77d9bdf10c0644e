"""What is analysed, on which images: the networks in checkpoint files, or in the output folder of a training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from rich.console import Console

from ratfast import catalogue, checkpoints, config, data
from ratfast.analysis.predictions import ImageSet, Predictor
from ratfast.averaging import Pool
from ratfast.config.schema import Data
from ratfast.errors import InputError
from ratfast.train import host, records
from ratfast.train.checkpoint_accuracy import build_network, fill_network
from ratfast.train.progress import Display
from ratfast.train.tasks import Tasks

VALIDATION = "validation"
"""The set of the training domains' validation images, each domain of which counts the same."""


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
    display: Display | None = None,
) -> Networks:
    """Opens networks and decodes the images to analyse them on.

    Args:
        paths: checkpoint files, folders of them or patterns; or one output folder of ratfast-train, whose members are
            taken, on the validation images of their training and on the domain held out from it.
        data_dir: folder that holds the data sets; for an output folder where its recipe says.
        dataset: of files: name of the data set, or of its folder.
        domains: each a set of its own, all images of it; by index or name. By default all, or the held-out domain.
        in_domains: of files: further domains, those seen in training, together one set.
        trial: of an output folder: its trial seed; by default the first.
        members: of an output folder: numbers of its members, from 0; all by default.
        backbone: of files: name of the network, where they do not say.
        image_size: of files: pixels, where they do not say.
        buffers: as in `ratfast.average`, for the averages.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32` or `bfloat16`.
        display: shows how far it is; nothing does by default.

    Raises:
        InputError: a checkpoint, the data set or a domain is wrong, or something is not given.
    """
    display = display or Display(Console(quiet=True))
    where = host.find_device(device)
    of_run = len(paths) == 1 and is_run(paths[0])
    of_files = {"--dataset": dataset, "--in-domain": in_domains, "--backbone": backbone}
    _refuse(
        of_files | {"--image-size": image_size} if of_run else {"--trial": trial, "--members": members},
        "checkpoint files" if of_run else "the output folder of a training",
    )
    names: Sequence[str]
    sources: Sequence[str]
    in_domain: str | None
    out_of_domain: str | None
    threads = None
    if of_run:
        run = _Run(Path(paths[0]), trial, members)
        names, sources, files = run.names, run.sources, run.files
        threads = run.threads
        options = run.data if data_dir is None else replace(run.data, dir=os.fspath(data_dir))
        folder = catalogue.find_folder(options.dir, options.target)
        network = build_network(files[0], data.scan(folder), None, None)
    else:
        if data_dir is None or dataset is None:
            raise InputError(
                "the images are not given, expected --data-dir and --dataset (only the output folder of a training "
                "says itself where they are)"
            )
        files = checkpoints.find_checkpoints(paths)
        names = sources = [os.fspath(file) for file in files]
        folder = catalogue.find_folder(data_dir, dataset)
        network = build_network(files[0], data.scan(folder), backbone, image_size)
        options = Data(dir=os.fspath(data_dir), target=dataset, image_size=network.image_size)
    host.prepare(where, threads)
    fill_network(network, checkpoints.load(files[0]), files[0])
    network.to(where, memory_format=torch.channels_last)
    pool = Pool.open(files, where, buffers=buffers)
    output = config.schema.Output(dir=os.fspath(paths[0])) if of_run else config.schema.Output()
    tasks = Tasks(config.Recipe(data=replace(options, aux=()), output=output), where, display)
    if of_run:
        sets = _sets_of_run(tasks, options, run.trial, domains)
        in_domain, out_of_domain = list(sets)[:2]
    else:
        sets, in_domain, out_of_domain = _named_sets(tasks, dataset, domains, in_domains)
    predictor = Predictor(
        pool,
        network,
        sets,
        host.find_precision(precision, where),
        partial(display.count, "evaluating networks"),
    )
    return Networks(tuple(names), tuple(sources), predictor, in_domain, out_of_domain)


def _refuse(given: Mapping[str, Any], of: str) -> None:
    for option, value in given.items():
        if value not in (None, (), []):
            raise InputError(f"{option} is for {of}, expected none here")


class _Run:
    """The members of one trial of a finished training, found below its folder wherever that has been moved."""

    def __init__(self, folder: Path, trial: int | None, members: Sequence[int] | None):
        recipe = config.load(folder / records.RECIPE)
        self.data = recipe.data
        self.threads = recipe.train.threads  # so that averages are evaluated to the numbers of their training
        if None in (recipe.data.dir, recipe.data.target, recipe.data.test_env):
            raise InputError(
                f"{folder / records.RECIPE} lacks data.dir, data.target or data.test_env, expected all three"
            )
        self.trial = recipe.train.seed if trial is None else trial
        summary = read_object(folder / records.SUMMARY)
        try:
            found = [(member["name"], member["initialisation"]) for member in summary["members"]]
            trials = [read_object(folder / name / records.RUN)["trial_seed"] for name, _ in found]
        except (KeyError, TypeError):
            raise InputError(
                f"{folder / records.SUMMARY} does not list its members, or one of them not its trial"
            ) from None
        own = [pair for pair, its_trial in zip(found, trials, strict=True) if its_trial == self.trial]
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


def _sets_of_run(tasks: Tasks, options: Data, trial: int, domains: Sequence[str]) -> dict[str, ImageSet]:
    """The validation images of the training domains, then each named domain, or the held-out one."""
    name = options.target
    dataset = tasks.datasets[name]
    held_out = dataset.domain_index(options.test_env)
    tested = [dataset.domain_index(domain) for domain in domains] or [held_out]
    validation = ImageSet(
        tuple(
            tasks.images(name, domain, tasks.split(name, domain, trial)[1])
            for domain in tasks.training_domains(name, held_out)
        )
    )
    return {VALIDATION: validation} | {
        dataset.domains[index].name: ImageSet((tasks.images(name, index),)) for index in tested
    }


def _named_sets(
    tasks: Tasks, name: str, domains: Sequence[str], in_domains: Sequence[str]
) -> tuple[dict[str, ImageSet], str | None, str | None]:
    """The sets of domains that are named, those seen in training together first; and which is which."""
    dataset = tasks.datasets[name]
    seen = [dataset.domain_index(domain) for domain in in_domains]
    chosen = [dataset.domain_index(domain) for domain in domains]
    chosen = chosen or [index for index in range(len(dataset.domains)) if index not in seen]
    if len(set(seen + chosen)) < len(seen + chosen):
        raise InputError("a domain is named twice, expected each domain once")
    sets = {}
    if seen:
        sets["in-domain"] = ImageSet(tuple(tasks.images(name, index) for index in seen))
    for index in chosen:
        sets[dataset.domains[index].name] = ImageSet((tasks.images(name, index),))
    names = list(sets)
    return sets, (names[0] if seen else None), (names[1] if seen and chosen else None)


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
