"""What a run has taken, over all the processes that worked on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Stopwatch:
    """Runs from when it is made; a process that goes on with a run adds what earlier ones noted in its snapshot.

    Args:
        clock: seconds, as `time.monotonic`.

    Attributes:
        images: trained on so far; to be counted by the training.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.images = 0
        self._clock = clock
        self._start = clock()
        self._training_start: float | None = None
        self._training_before = 0.0

    def training_begins(self) -> None:
        """Notes that from now on the run trains and evaluates."""
        self._training_start = self._clock()

    @property
    def seconds(self) -> float:
        """Of the run in all."""
        return self._clock() - self._start

    @property
    def training_seconds(self) -> float:
        """Of training, evaluations included."""
        since = 0.0 if self._training_start is None else self._clock() - self._training_start
        return self._training_before + since

    def state(self) -> dict[str, float]:
        """What `restore` takes, JSON-able."""
        return {"seconds": self.seconds, "training_seconds": self.training_seconds, "images": self.images}

    def restore(self, state: Mapping[str, float]) -> None:
        """Adds what an earlier process had taken by its last snapshot."""
        self._start -= state["seconds"]
        self._training_before += state["training_seconds"]
        self.images += int(state["images"])
