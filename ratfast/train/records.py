"""What a run leaves on disk, and how: whole or not at all.

A run is written into `NAME.partial` and renamed to `NAME` when everything in it is on disk, so that a folder of a
run that exists is a run that finished. Inside, as in DomainBed: `results.jsonl` (one row per evaluation) and `done`;
the runs of a sweep are side by side, so that `collect_results --input_dir OUTPUT/target` reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ratfast.checkpoints import atomic_file

CHECKPOINT = "model.safetensors"
RESULTS = "results.jsonl"
RUN = "run.json"
SUMMARY = "summary.json"
RECIPE = "recipe.toml"
DONE = "done"
"""Of the file in a run's folder that is the last to be there."""
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
def new_run(folder: Path) -> Iterator[Path]:
    """Gives a scratch folder that becomes `folder`, with its `done` file, when the block ends well.

    Where another process, taken for lost, has finished the same run meanwhile, its folder stays.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_text(partial / DONE, "done\n")
        if folder.is_dir() and not is_done(folder):
            shutil.rmtree(folder)  # a part of a run that was being copied here
        try:
            partial.rename(folder)
        except OSError:
            if not is_done(folder):
                raise
            shutil.rmtree(partial)
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
    return (folder / DONE).is_file()
