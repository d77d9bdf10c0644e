"""What of a plan is done and what is left, how long that takes and what it costs. Free of torch.

Time is images over images per second. The rates are medians of what the finished runs of the output folder recorded,
with evaluations; those of the same data set where there are some. Updates of the head alone need no backward pass
through the network: where only one kind of update has been measured, the other is taken as `HEAD_SPEEDUP` times as
fast or slow.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast.config import Recipe
from ratfast.data import DomainDataset
from ratfast.train.plan import Job, Plan, Task
from ratfast.train.state import is_done, last_failure, read_run, updates_made

HEAD_SPEEDUP = 3.0
"""A forward pass has about a third of the arithmetic of a forward and a backward pass."""


@dataclass(frozen=True)
class Standing:
    """How far one task has come.

    Attributes:
        task: the task.
        done: whether it has been carried out.
        updates: updates made; of a training that is not done, those from which it would go on.
        images: images that are yet to be trained on.
        head_images: those of them that only the head is trained on.
        failure: why it failed when it was last tried, or None.
    """

    task: Task
    done: bool
    updates: int
    images: int
    head_images: int
    failure: str | None

    @property
    def stage(self) -> str:
        """The stage of a training; `"averages"`."""
        return self.task.stage if isinstance(self.task, Job) else "averages"

    @property
    def state(self) -> str:
        """`"done"`, `"begun"` or `"to do"`."""
        if self.done:
            return "done"
        return "begun" if self.updates else "to do"


def standings(
    plan: Plan, recipe: Recipe, datasets: Mapping[str, DomainDataset], output: Path
) -> list[Standing]:
    """How far every task of a plan has come, in the plan's order."""
    return [_standing(task, recipe, datasets, output) for task in plan.tasks]


def _standing(task: Task, recipe: Recipe, datasets: Mapping[str, DomainDataset], output: Path) -> Standing:
    done = is_done(task, output)
    failure = None if done else last_failure(task, output)
    if not isinstance(task, Job):
        return Standing(task, done, 0, 0, 0, failure)
    made = task.steps if done else updates_made(task, output)
    domains = len(datasets[task.dataset].domains) - (task.test_env is not None)
    batch = recipe.train.batch_size * domains
    head = max(0, task.probe_steps - made)
    return Standing(task, done, made, (task.steps - made) * batch, head * batch, failure)


class Rates:
    """Images that one worker trains on per second.

    Args:
        plan: whose finished runs are looked at.
        output: the output folder.
        given: the rate of full updates to take instead of measured ones.
    """

    def __init__(self, plan: Plan, output: Path, given: float | None = None):
        self._given = given
        self._measured: dict[tuple[bool, str], list[float]] = {}
        for job in plan.jobs:
            if is_done(job, output) and (rate := read_run(job, output).get("images_per_second")):
                self._measured.setdefault((job.stage == "probe", job.dataset), []).append(rate)

    @property
    def runs(self) -> int:
        """How many finished runs the rates are from."""
        return 0 if self._given is not None else sum(map(len, self._measured.values()))

    def full(self, dataset: str | None = None) -> float | None:
        """Of updates of the whole network; None if unknown."""
        if self._given is not None:
            return self._given
        head = self._median(True, dataset)
        return self._median(False, dataset) or (head and head / HEAD_SPEEDUP)

    def head(self, dataset: str | None = None) -> float | None:
        """Of updates of the head alone; None if unknown."""
        if self._given is not None:
            return self._given * HEAD_SPEEDUP
        full = self._median(False, dataset)
        return self._median(True, dataset) or (full and full * HEAD_SPEEDUP)

    def seconds(self, standing: Standing) -> float | None:
        """What is left of a training; None if no rate is known, and of an average, whose time is not estimated."""
        task = standing.task
        if standing.done:
            return 0.0
        if not isinstance(task, Job):
            return None
        full, head = self.full(task.dataset), self.head(task.dataset)
        if full is None or head is None:
            return None
        return (standing.images - standing.head_images) / full + standing.head_images / head

    def _median(self, head: bool, dataset: str | None) -> float | None:
        found = self._measured.get((head, dataset or "")) or [
            rate for (kind, _), rates in self._measured.items() if kind == head for rate in rates
        ]
        return statistics.median(found) if found else None


def seconds_with(plan: Plan, seconds: Mapping[str, float], workers: int) -> float:
    """Time until all is done, if the next task that can begin goes to the next worker that is free.

    Args:
        plan: says what needs what.
        seconds: what is left of each task, by name.
        workers: how many work at a time.
    """
    needs = plan.prerequisites()
    ends: dict[str, float] = {}
    free = [0.0] * workers
    waiting = [task.name for task in plan.tasks]
    while waiting:
        now = free[0]
        # In the plan's order every prerequisite stands before what needs it, so the first can always begin some time.
        ready = next(
            (name for name in waiting if all(ends.get(need, now + 1) <= now for need in needs[name])), None
        )
        if ready is None:
            later = [end for end in ends.values() if end > now]
            heapq.heapreplace(free, min(later))
            continue
        waiting.remove(ready)
        ends[ready] = now + seconds.get(ready, 0.0)
        heapq.heapreplace(free, ends[ready])
    return max(ends.values(), default=0.0)


def estimate(
    plan: Plan,
    recipe: Recipe,
    datasets: Mapping[str, DomainDataset],
    *,
    output: Path | None = None,
    images_per_second: float | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """What there is to do, what is done, and the time and cost of the rest.

    Args:
        plan: of the recipe.
        recipe: names the output folder and the number of workers.
        datasets: by name, scanned.
        output: where to look, instead of the recipe's output folder.
        images_per_second: of full updates of one worker, instead of what finished runs recorded.
        price_per_hour: of one worker (of its GPU), in any currency.

    Returns:
        `workers`; `images_per_second` and `head_images_per_second` (None if unknown) and `measured_runs`, from how
        many runs they are; `work_seconds` of one worker and `seconds` with all (None if unknown; averages are not
        counted); `cost` of holding all workers so long; `tasks`: of each `name`, `stage`, `state` ("done", "begun",
        "to do"), `updates` made of `steps`, `images` left, `seconds` left, `needs` (names), and `failure`, if it
        failed when it was last tried.
    """
    output = Path(recipe.output.dir) if output is None else output
    found = standings(plan, recipe, datasets, output)
    rates = Rates(plan, output, images_per_second)
    left = {standing.task.name: rates.seconds(standing) for standing in found}
    workers = recipe.train.workers or 1
    training = [left[job.name] for job in plan.jobs]
    known = None not in training
    elapsed = None
    if known:
        elapsed = seconds_with(plan, {name: value or 0.0 for name, value in left.items()}, workers)
    cost = None
    if elapsed is not None and price_per_hour is not None:
        cost = elapsed / 3600 * workers * price_per_hour
    return {
        "output": str(Path(recipe.output.dir)),
        "workers": workers,
        "images_per_second": rates.full(recipe.data.target),
        "head_images_per_second": rates.head(recipe.data.target),
        "measured_runs": rates.runs,
        "work_seconds": sum(value or 0.0 for value in training) if known else None,
        "seconds": elapsed,
        "cost": cost,
        "tasks": _tasks(plan, found, left),
    }


def _tasks(plan: Plan, found: Sequence[Standing], left: Mapping[str, float | None]) -> list[dict[str, Any]]:
    needs = plan.prerequisites()
    return [
        {
            "name": standing.task.name,
            "stage": standing.stage,
            "state": standing.state,
            "updates": standing.updates,
            "steps": standing.task.steps if isinstance(standing.task, Job) else 0,
            "images": standing.images,
            "seconds": left[standing.task.name],
            "needs": sorted(needs[standing.task.name]),
            **({"failure": standing.failure} if standing.failure else {}),
        }
        for standing in found
    ]
