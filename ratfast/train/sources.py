"""The auxiliary fine-tunings that target runs start from: trained by the recipe, or given as files from anywhere.

A *source* is one auxiliary task with its runs. `ratfast.protocol.auxiliary` deals the runs of all sources to the
target's fine-tunings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast import catalogue, checkpoints
from ratfast.errors import InputError
from ratfast.train import records

RUN_CHECKPOINTS = ("featurizer_last.pkl", records.CHECKPOINT)
"""What a finished run's folder keeps for recycling: of the official release, of ratfast."""


@dataclass(frozen=True)
class Source:
    """One auxiliary task.

    Attributes:
        name: decides the order of the sources.
        runs: what each run is: a training's name in the plan, or a file.
        dataset: the data set that it says it was fine-tuned on, or None.
    """

    name: str
    runs: tuple[str, ...]
    dataset: str | None = None


def given_sources(
    entries: tuple[str, ...], target: str, by_seed: bool, say: Callable[[str], None] = lambda line: None
) -> list[Source]:
    """The sources that `model.aux_weights` names.

    A file is a source of one run, and so is each file of a pattern or of a folder of files. A folder of finished runs
    (`<run>/done` with `featurizer_last.pkl` or `model.safetensors`) is one source, a folder of such folders several;
    among those, the ones of the target are passed over, as the official release does.

    Args:
        entries: files, patterns, folders.
        target: the target data set, which must not be among them.
        by_seed: order the runs of a folder by the hyperparameter seed that they record, where they all do; otherwise
            by their folders' names.
        say: told what is passed over.

    Raises:
        InputError: an entry does not exist or holds nothing to start from, or one is of the target data set.
    """
    found = []
    for entry in entries:
        path = Path(entry)
        if path.is_dir() and (own := _source_of_runs(path, by_seed)):
            found.append(_checked(own, target))
        elif path.is_dir() and (children := _sources_below(path, by_seed)):
            for source in children:
                if _is_target(source, target):
                    say(f"{path / source.name} is of the target {target} and not used")
                else:
                    found.append(source)
        else:
            try:
                files = checkpoints.find_checkpoints(entry)
            except InputError as error:
                raise InputError(f"model.aux_weights: {error}") from error
            found += [_checked(Source(file.stem, (str(file),), _recorded(file)[0]), target) for file in files]
    return _with_unique_names(found)


def _source_of_runs(folder: Path, by_seed: bool) -> Source | None:
    """A folder of finished runs, or a run's own folder."""
    runs = (
        [folder] if _checkpoint_of(folder) else sorted(child for child in folder.iterdir() if child.is_dir())
    )
    files = [file for run in runs if (file := _checkpoint_of(run))]
    if not files:
        return None
    recorded = [_recorded(file) for file in files]
    seeds = [seed for _, seed in recorded]
    if by_seed and None not in seeds:
        files = [file for _, file in sorted(zip(seeds, files, strict=True))]
    return Source(folder.name, tuple(map(str, files)), recorded[0][0])


def _sources_below(folder: Path, by_seed: bool) -> list[Source]:
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    return [source for child in children if (source := _source_of_runs(child, by_seed))]


def _checkpoint_of(run: Path) -> Path | None:
    if not run.is_dir() or not records.is_done(run):
        return None
    return next((run / name for name in RUN_CHECKPOINTS if (run / name).is_file()), None)


def _recorded(file: Path) -> tuple[str | None, int | None]:
    """The data set and the hyperparameter seed that a checkpoint, or the folder of its run, says it is of."""
    for arguments in (_arguments_beside(file), _arguments_within(file)):
        if isinstance(arguments.get("dataset"), str):
            seed = arguments.get("hparams_seed")
            return arguments["dataset"], seed if isinstance(seed, int) else None
    return None, None


def _arguments_beside(file: Path) -> dict[str, Any]:
    """The arguments in the first row of the run's `results.jsonl`."""
    try:
        with (file.parent / records.RESULTS).open(encoding="utf-8") as rows:
            found = json.loads(rows.readline())["args"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _arguments_within(file: Path) -> dict[str, Any]:
    """What the checkpoint's metadata say of its run: ratfast's `run`, DomainBed's `args`."""
    metadata = checkpoints.open_checkpoint(file).metadata if file.is_file() else {}
    found = metadata.get("run") or metadata.get("args")
    return found if isinstance(found, dict) else {}


def _is_target(source: Source, target: str) -> bool:
    if source.dataset is not None and catalogue.canonical_name(source.dataset) == target:
        return True
    return same_data(source.name, target)


def same_data(name: str, target: str) -> bool:
    """Whether a name begins with the target's, as the official release tells folders of the target from others."""
    known = catalogue.find(target)
    names = {target, *((known.name, known.folder) if known else ())}
    return any(name.lower().startswith(own.lower()) for own in names)


def _checked(source: Source, target: str) -> Source:
    if _is_target(source, target):
        said = f"says that it was fine-tuned on {source.dataset}" if source.dataset else "bears its name"
        raise InputError(
            f"model.aux_weights: {source.runs[0]} is of the target data set {target} (it {said}), expected auxiliary "
            "data sets alone: an auxiliary training sees every domain, the held-out one too"
        )
    return source


def _with_unique_names(sources: list[Source]) -> list[Source]:
    """Sources of the same name get their path as name, which keeps the assignment well defined."""
    names = [source.name for source in sources]
    return [
        Source(f"{source.name} ({source.runs[0]})", source.runs, source.dataset)
        if names.count(source.name) > 1
        else source
        for source in sources
    ]
