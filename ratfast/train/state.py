"""What of a plan an output folder holds: which tasks are done, and how far the others have come. Free of torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ratfast import checkpoints
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.train.plan import Average, Job, Task
from ratfast.version import __version__


def average_file(average: Average, output: Path) -> Path:
    """The file of an average's weights; its record is beside it, with the suffix `.json`."""
    return output / f"{average.name}.safetensors"


def snapshot_file(job: Job, output: Path) -> Path:
    """The file that holds the state of a training while it goes on."""
    return output / f"{job.name}{records.SNAPSHOT_SUFFIX}"


def failure_file(task: Task, output: Path) -> Path:
    """The file that says why a task failed when it was last tried."""
    return output / f"{task.name}{records.FAILURE_SUFFIX}"


def is_done(task: Task, output: Path) -> bool:
    """Whether a task has been carried out."""
    if isinstance(task, Job):
        return records.is_done(output / task.name)
    path = average_file(task, output)
    return path.is_file() and path.with_suffix(".json").is_file()


def updates_made(job: Job, output: Path) -> int:
    """Updates from which a training that is not done would go on; 0 if it would start anew."""
    path = snapshot_file(job, output)
    if not path.is_file():
        return 0
    try:
        metadata = checkpoints.read_metadata(path)
        identity = metadata["identity"]
        known = identity["job"] == json.loads(json.dumps(asdict(job))) and identity["version"] == __version__
        return int(metadata["values"]["updates"]) if known else 0
    except (InputError, KeyError, TypeError):
        return 0  # damaged or of another training: it is not continued


def read_run(job: Job, output: Path) -> dict[str, Any]:
    """What a finished training recorded of itself."""
    return json.loads((output / job.name / records.RUN).read_text(encoding="utf-8"))


def last_failure(task: Task, output: Path) -> str | None:
    """Why a task failed when it was last tried, in a sentence; None if it did not."""
    try:
        return failure_file(task, output).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None
