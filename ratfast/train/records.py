"""What a run leaves on disk, and how: whole or not at all.

A run is written into `NAME.partial` and renamed to `NAME` when everything in it is on disk, so that a folder of a
run that exists is a run that finished. Inside, as in DomainBed: `results.jsonl` (one row per evaluation) and `done`;
the runs of a sweep are side by side, so that `collect_results --input_dir OUTPUT/target` reads them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ratfast.checkpoints import TEMPORARY_FILES, atomic_file
from ratfast.errors import InputError

CHECKPOINT = "model.safetensors"
RESULTS = "results.jsonl"
RUN = "run.json"
SUMMARY = "summary.json"
RECIPE = "recipe.toml"
SNAPSHOT_SUFFIX = ".snapshot"
"""Of the file beside a run's folder that holds the state of the run while it goes on."""
FAILURE_SUFFIX = ".failed"
"""Of the file there that says, in its first line, why the run failed when it was last tried."""


def write_text(path: Path, text: str) -> None:
    """Writes a small file atomically: the new text or the old file, never a part."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def locked_output(folder: Path) -> Iterator[None]:
    """Holds the output folder for one process; the kernel lets go of it however the process ends.

    Raises:
        InputError: the folder cannot be made or written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"the output folder {folder} cannot be written ({error.strerror}), expected a folder to create or use"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another ratfast-train is writing to the output folder {folder}, expected one at a time"
            ) from error
        for leftover in folder.rglob(TEMPORARY_FILES):
            leftover.unlink()  # of a process that was killed while it wrote
        yield


@contextlib.contextmanager
def new_run(folder: Path) -> Iterator[Path]:
    """Gives a scratch folder that becomes `folder`, with its `done` file, when the block ends well."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_text(partial / "done", "done\n")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the evaluations of a run, one JSON object a line, keys sorted as DomainBed does."""
    write_text(folder / RESULTS, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that `write_rows` wrote."""
    lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def link(place: Path, folder: Path) -> None:
    """Makes `place` a relative link to the folder of a run that is in two sweeps; where it is that folder, nothing."""
    if place == folder:
        return
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(os.path.relpath(folder, place.parent), target_is_directory=True)


def is_done(folder: Path) -> bool:
    """Whether the run of this folder has finished."""
    return (folder / "done").is_file()
