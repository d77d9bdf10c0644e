"""Several tasks of a plan at a time on this machine: a process for each, on a GPU of its own where there is one.

A worker that fails or dies takes nothing with it: its task goes on in another from the last state on the disk, and the
other workers do not notice. They are sessions of their own, so that an interruption from the terminal reaches the
command alone, which then ends them, and no result depends on how many there are.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType

from ratfast.train.agenda import Agenda
from ratfast.train.failures import Failure, failure_of_exit, record_failure
from ratfast.train.lock import PATIENCE_SECONDS
from ratfast.train.plan import Plan, Task
from ratfast.train.progress import Display
from ratfast.train.shared import Shared
from ratfast.train.state import is_done
from ratfast.train.store import Store
from ratfast.train.worker import Event

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ratfast.train.worker import main; main(int(sys.argv[2]))"
)


class Worker:
    """A process that carries out tasks, as the command sees it.

    Args:
        number: distinguishes it from the others that run.
        shared: what it is told first.
        environment: its environment variables.
        lock: descriptor of the output folder's lock, which it holds too.
        display: shows what it prints.

    Attributes:
        connection: its events come from there.
        task: what it is at.
        leaving: it takes no more tasks: it ends after a failure.
    """

    def __init__(self, number: int, shared: Shared, environment: dict[str, str], lock: int, display: Display):
        self.number = number
        self.task: Task | None = None
        self.leaving = False
        self.connection, theirs = multiprocessing.Pipe()
        self._display = display
        self._counts: set[str] = set()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                pass_fds=[theirs.fileno(), lock],
                start_new_session=True,
            )
        self._printed = threading.Thread(target=self._relay, name="ratfast-worker-output", daemon=True)
        self._printed.start()
        with contextlib.suppress(OSError):  # it is dead already, which its connection says
            self.connection.send(shared)

    def begin(self, task: Task) -> None:
        """Gives it a task."""
        self.task = task
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def show(self, event: Event) -> None:
        """Passes on to the display what it tells."""
        if event.kind == "count":
            name, done, total = event.values
            name = f"worker {self.number}: {name}"
            self._counts.add(name)
            self._display.count(name, done, total)
        else:
            getattr(self._display, event.kind)(*event.values)

    def terminate(self) -> None:
        """Asks it to save what it has and end."""
        self._process.terminate()

    def join(self, seconds: float) -> int:
        """Waits until it has ended, kills it if that takes too long, and returns its exit code."""
        self.connection.close()
        try:
            code = self._process.wait(seconds)
        except BaseException as error:
            self._process.kill()
            code = self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        for name in self._counts | ({self.task.name} if self.task else set()):
            self._display.end(name)
        self._printed.join(1.0)
        return code

    def _relay(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._display.say(f"worker {self.number}: {line.rstrip()}")


class Workers:
    """The workers of a command. A context manager: leaving it ends them all.

    Args:
        count: how many work at a time.
        shared: what they are told.
        gpus: values of CUDA_VISIBLE_DEVICES that they take in turn; empty without a GPU.
        lock: descriptor of the output folder's lock.
        display: shows what they tell.
    """

    def __init__(self, count: int, shared: Shared, gpus: Sequence[str], lock: int, display: Display):
        self._count = count
        self._shared = shared
        self._gpus = gpus
        self._lock = lock
        self._display = display
        self._workers: dict[Connection, Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            worker.join(max(0.0, deadline - time.monotonic()))

    def carry_out(self, plan: Plan, store: Store) -> None:
        """Carries out all tasks that are not done.

        Args:
            plan: the tasks.
            store: the output folder, and where its files are kept beside it.

        Raises:
            UnfinishedError: some failed, all others are done.
        """
        agenda = Agenda(plan, lambda task: is_done(task, store.output), self._shared.recipe.train.retries)
        while True:
            self._give_out(agenda)
            if not any(worker.task or worker.leaving for worker in self._workers.values()):
                agenda.close()
                return
            for worker, event in self._events():
                task = worker.task
                if event.kind == "done":
                    worker.task = None
                    agenda.done(task)
                elif event.kind == "failed":
                    worker.task = None
                    worker.leaving = not event.values[0].input_is_wrong
                    self._display.end(task.name)
                    self._failed(agenda, task, event.values[0], store)
                else:
                    worker.show(event)

    def _give_out(self, agenda: Agenda) -> None:
        """Gives tasks that can begin to workers that have none, and starts workers for more."""
        idle = [w for w in self._workers.values() if w.task is None and not w.leaving]
        while (idle or len(self._workers) < self._count) and (task := agenda.next()) is not None:
            (idle.pop(0) if idle else self._start()).begin(task)

    def _start(self) -> Worker:
        number = next(i for i in range(self._count) if i not in {w.number for w in self._workers.values()})
        environment = dict(os.environ)
        if self._shared.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._shared.threads)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        worker = Worker(number, self._shared, environment, self._lock, self._display)
        self._workers[worker.connection] = worker
        return worker

    def _events(self) -> Iterator[tuple[Worker, Event]]:
        """What workers tell, waiting for the first; of one that has died with a task, that it failed."""
        for connection in wait(list(self._workers)):
            assert isinstance(connection, Connection)
            worker = self._workers[connection]
            try:
                event = connection.recv()
            except (EOFError, OSError):
                del self._workers[connection]
                code = worker.join(PATIENCE_SECONDS)
                if worker.task is not None:
                    yield worker, Event("failed", (failure_of_exit(code),))
            else:
                yield worker, event

    def _failed(self, agenda: Agenda, task: Task, failure: Failure, store: Store) -> None:
        record_failure(task, failure, store)
        again = agenda.failed(task, failure)
        self._display.say(f"{task.name}: {failure.sentence}; {'tried again' if again else 'given up'}")
