"""The state of a training on disk while it goes on: a process that dies loses what came since the last snapshot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratfast import checkpoints
from ratfast.errors import InputError
from ratfast.train.writer import Writer

_KIND = "snapshot"


@dataclass(frozen=True)
class Snapshot:
    """Everything that the rest of a training depends on.

    Attributes:
        values: JSON-able: counters and records.
        tensors: weights, optimizer states, random states; any shape, type and device.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Snapshots:
    """The snapshots of one training: one file, replaced by each new one in an instant, written in the background.

    Use it as a context manager: leaving it waits until the last snapshot is on the disk.

    Args:
        path: the file.
        identity: JSON-able; says which training it is, so that a file of another one is not continued.
        interval: seconds between snapshots.
        keep: called in the background after each, to copy the file elsewhere; while it does, none is due.
        clock: seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        interval: float = 60.0,
        keep: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path = path
        self._identity = json.loads(json.dumps(identity))  # as a file gives it back
        self._interval = interval
        self._keep = keep
        self._clock = clock
        self._last = clock()
        self._writer = Writer()

    def load(self) -> Snapshot | None:
        """The last snapshot of this training; None if there is no file, or a damaged one, or another training's."""
        if not self._path.is_file():
            return None
        try:
            metadata = checkpoints.read_metadata(self._path)
            if metadata.get("kind") != _KIND or metadata.get("identity") != self._identity:
                return None
            return Snapshot(metadata["values"], checkpoints.load(self._path))
        except InputError:
            return None

    def due(self) -> bool:
        """Whether the interval since the last snapshot, or the beginning, has passed.

        A copy elsewhere may take longer than the interval; training does not wait for it.
        """
        copying = self._keep is not None and not self._writer.is_idle
        return self._clock() - self._last >= self._interval and not copying

    def save(self, snapshot: Snapshot) -> None:
        """Copies what is given, and writes it while training goes on.

        Raises:
            OSError: the snapshot before could not be written, such as on a full disk; the one before that is kept.
        """
        metadata = {"kind": _KIND, "identity": self._identity, "values": snapshot.values}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer.save(snapshot.tensors, self._path, metadata, self._keep)
        self._last = self._clock()

    def wait(self) -> None:
        """Waits until the last snapshot is on the disk.

        Raises:
            OSError: it could not be written.
        """
        self._writer.wait()

    def forget(self) -> None:
        """Removes the file: the training has ended."""
        self.wait()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a training on `device` draws from."""
    states = {"random_cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random_cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Sets the generators to what `random_states` gave."""
    torch.set_rng_state(states["random_cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["random_cuda"], device)
