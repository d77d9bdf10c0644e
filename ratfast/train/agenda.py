"""Which task of a plan may begin next, when several are carried out at a time; free of torch."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from graphlib import TopologicalSorter

from ratfast.train.failures import Failure, unfinished
from ratfast.train.plan import Plan, Task


class Agenda:
    """The tasks of a plan that are not done, given out in the plan's order as soon as what they need is done.

    A task that fails is given out again before all others, as often as `retries` says; one that cannot succeed is not.

    Args:
        plan: the tasks and what they need.
        is_done: whether a task was done before.
        retries: how often a task is tried again.
    """

    def __init__(self, plan: Plan, is_done: Callable[[Task], bool], retries: int):
        self._tasks = {task.name: task for task in plan.tasks}
        self._order = {name: number for number, name in enumerate(self._tasks)}
        self._is_done = is_done
        self._retries = retries
        self._trials: dict[str, int] = {}
        self._failed: dict[str, Failure] = {}
        self._ready: list[tuple[int, str]] = []
        self._sorter = TopologicalSorter(plan.prerequisites())
        self._sorter.prepare()
        self._unfinished = set(self._tasks)
        self._take_ready()

    def next(self) -> Task | None:
        """A task to begin; None if there is none for now."""
        return self._tasks[heapq.heappop(self._ready)[1]] if self._ready else None

    def done(self, task: Task) -> None:
        """Takes note that a task is done."""
        self._finish(task.name)
        self._take_ready()

    def failed(self, task: Task, failure: Failure) -> bool:
        """Takes note that a task failed; whether it will be tried again."""
        trials = self._trials[task.name] = self._trials.get(task.name, 0) + 1
        if failure.input_is_wrong or trials > self._retries:
            self._failed[task.name] = failure
            return False
        heapq.heappush(self._ready, (-1, task.name))
        return True

    def close(self) -> None:
        """Raises UnfinishedError if there is something that is not done."""
        if self._unfinished:
            failed = [
                (name, failure, self._trials[name])
                for name, failure in sorted(self._failed.items(), key=lambda item: self._order[item[0]])
            ]
            raise unfinished(
                failed, [name for name in self._tasks if name in self._unfinished - set(self._failed)]
            )

    def _finish(self, name: str) -> None:
        self._unfinished.discard(name)
        self._sorter.done(name)

    def _take_ready(self) -> None:
        while names := self._sorter.get_ready():
            for name in names:
                if self._is_done(self._tasks[name]):
                    self._finish(name)
                else:
                    heapq.heappush(self._ready, (self._order[name], name))
