"""What a person sees meanwhile: live bars on a terminal; elsewhere a line per finished run, and signs of life."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

HEARTBEAT_SECONDS = 30.0
"""Where no bars are shown, no longer than about this is nothing printed."""


@dataclass(frozen=True)
class RunState:
    """How far a training is.

    Attributes:
        name: of the training.
        done: updates made.
        steps: updates in all.
        speed: such as `"120 img/s"`; may be empty.
        accuracy: such as `"val 0.750"`; may be empty.
    """

    name: str
    done: int
    steps: int
    speed: str = ""
    accuracy: str = ""

    def __str__(self) -> str:
        known = [f"{self.name}: update {self.done} of {self.steps}", self.speed, self.accuracy]
        return ", ".join(filter(None, known))


class View(ABC):
    """Whoever is told what goes on: a display, or the process that has one."""

    @abstractmethod
    def say(self, line: str) -> None:
        """Takes a line of text."""

    @abstractmethod
    def show(self, run: RunState) -> None:
        """Takes note of how far a training is."""

    @abstractmethod
    def end(self, name: str) -> None:
        """Takes note that a training goes on no longer."""

    @abstractmethod
    def count(self, name: str, done: int, total: int) -> None:
        """Takes note of how far something other than a training is; with `done == total` it is over."""

    def begin(self, name: str, steps: int) -> RunProgress:
        """Shows one run."""
        return RunProgress(self, name, steps)


class RunProgress:
    """One training as a view is told of it; also measures its throughput."""

    def __init__(self, view: View, name: str, steps: int):
        self._view = view
        self._name = name
        self._steps = steps
        self._done = 0
        self._images = 0
        self._speed = ""
        self._accuracy = ""
        self._start = time.perf_counter()
        self._tell()

    @property
    def images_per_second(self) -> float:
        """Images trained on per second so far, evaluations included."""
        return self._images / max(time.perf_counter() - self._start, 1e-9)

    def step(self, images: int) -> None:
        """Counts one update on so many images."""
        self._done += 1
        self._images += images
        self._speed = f"{self.images_per_second:.0f} img/s"
        self._tell()

    def skip(self, updates: int) -> None:
        """Takes note of updates that an earlier process made."""
        self._done += updates
        self._tell()

    def evaluated(self, accuracy: float) -> None:
        """Shows the last validation accuracy."""
        self._accuracy = f"val {accuracy:.3f}"
        self._tell()

    def end(self) -> None:
        """Takes the run away."""
        self._view.end(self._name)

    def _tell(self) -> None:
        self._view.show(RunState(self._name, self._done, self._steps, self._speed, self._accuracy))


class _Terminal:
    """The standard error, which may be a terminal that is closed meanwhile: then nobody is there to be told."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        with _closed_terminal_ignored():
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with _closed_terminal_ignored():
            sys.stderr.flush()


@contextlib.contextmanager
def _closed_terminal_ignored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


class Display(View):
    """The display of a whole command. A context manager.

    Args:
        console: where to; the standard error's by default, so that standard output holds results alone.

    Attributes:
        bars: rich's progress display.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(file=cast(TextIO, _Terminal()))
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[accuracy]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._overall: TaskID | None = None
        self._shown: dict[str, TaskID] = {}
        self._running: dict[str, RunState] = {}
        self._made: dict[str, int] = {}  # updates of every run so far, those that have ended too
        self._last_line = time.monotonic()

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()

    def expect(self, steps: int) -> None:
        """Shows the bar of all runs together, of so many updates."""
        self._overall = self._add_bar("all runs", steps)

    def show(self, run: RunState) -> None:
        """Moves the run's bar, and that of all runs."""
        if run.name not in self._running:
            self._shown[run.name] = self._add_bar(run.name, run.steps)
        self._running[run.name] = run
        self.bars.update(self._shown[run.name], completed=run.done, speed=run.speed, accuracy=run.accuracy)
        self.made(run.name, run.done)
        self._heartbeat("; ".join(map(str, self._running.values())))

    def made(self, name: str, updates: int) -> None:
        """Counts a run's updates in the bar of all runs."""
        self._made[name] = updates
        if self._overall is not None:
            self.bars.update(self._overall, completed=sum(self._made.values()))

    def end(self, name: str) -> None:
        """Takes the bar of that name away."""
        self._running.pop(name, None)
        if name in self._shown:
            self.bars.remove_task(self._shown.pop(name))

    def count(self, name: str, done: int, total: int) -> None:
        """Shows a bar; it goes when all is done."""
        if name not in self._shown:
            self._shown[name] = self._add_bar(name, total)
        self.bars.update(self._shown[name], completed=done)
        if done >= total:
            self.bars.remove_task(self._shown.pop(name))
        self._heartbeat(f"{name}: {done} of {total}")

    def _add_bar(self, name: str, total: int) -> TaskID:
        return self.bars.add_task(name, total=total, speed="", accuracy="")

    def _heartbeat(self, line: str) -> None:
        """Prints a line if there are no bars and nothing has been printed for a while."""
        if self.bars.disable and time.monotonic() - self._last_line > HEARTBEAT_SECONDS:
            self.say(line)
