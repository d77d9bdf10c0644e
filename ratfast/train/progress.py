"""What a person sees meanwhile: live bars on a terminal; elsewhere a line per finished run, and signs of life."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

HEARTBEAT_SECONDS = 30.0
"""Where no bars are shown, no longer than about this is nothing printed."""


class RunProgress:
    """One training in the display; also measures its throughput."""

    def __init__(self, display: Display, name: str, steps: int):
        self._display = display
        self._name = name
        self._steps = steps
        self._bar = display.add_bar(name, steps)
        self._done = 0
        self._images = 0
        self._accuracy = ""
        self._start = time.perf_counter()

    @property
    def images_per_second(self) -> float:
        """Images trained on per second so far, evaluations included."""
        return self._images / max(time.perf_counter() - self._start, 1e-9)

    def step(self, images: int) -> None:
        """Counts one update on so many images."""
        self._done += 1
        self._images += images
        speed = f"{self.images_per_second:.0f} img/s"
        self._display.bars.update(self._bar, advance=1, speed=speed)
        self._display.advance(1)
        known = [f"{self._name}: update {self._done} of {self._steps}", speed, self._accuracy]
        self._display.heartbeat(", ".join(filter(None, known)))

    def skip(self, updates: int) -> None:
        """Takes note of updates that an earlier process made."""
        self._done += updates
        self._display.bars.update(self._bar, advance=updates)
        self._display.advance(updates)

    def evaluated(self, accuracy: float) -> None:
        """Shows the last validation accuracy."""
        self._accuracy = f"val {accuracy:.3f}"
        self._display.bars.update(self._bar, accuracy=self._accuracy)

    def end(self) -> None:
        """Takes the run's bar away."""
        self._display.bars.remove_task(self._bar)


class Display:
    """The display of a whole command. A context manager.

    Args:
        console: where to; the standard error's by default, so that standard output holds results alone.

    Attributes:
        bars: rich's progress display.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
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
        self._counts: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def add_bar(self, name: str, total: int) -> TaskID:
        """Shows a bar."""
        return self.bars.add_task(name, total=total, speed="", accuracy="")

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()

    def heartbeat(self, line: str) -> None:
        """Prints a line if there are no bars and nothing has been printed for a while."""
        if self.bars.disable and time.monotonic() - self._last_line > HEARTBEAT_SECONDS:
            self.say(line)

    def expect(self, steps: int) -> None:
        """Shows the bar of all runs together, of so many updates."""
        self._overall = self.add_bar("all runs", steps)

    def advance(self, steps: int) -> None:
        """Counts updates in the bar of all runs."""
        if self._overall is not None:
            self.bars.update(self._overall, advance=steps)

    def begin(self, name: str, steps: int) -> RunProgress:
        """Shows the bar of one run."""
        return RunProgress(self, name, steps)

    def count(self, name: str, done: int, total: int) -> None:
        """Shows how far something other than a training is; its bar goes when all of it is done."""
        if name not in self._counts:
            self._counts[name] = self.add_bar(name, total)
        self.bars.update(self._counts[name], completed=done)
        if done >= total:
            self.bars.remove_task(self._counts.pop(name))
        self.heartbeat(f"{name}: {done} of {total}")
