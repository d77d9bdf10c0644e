"""Where else results are kept: a folder at a URL beside the output folder, from which any machine goes on.

Everything in training works on the output folder. A store holds the same files under the same names: what is done is
kept there as soon as it is, and comes from there where the output folder lacks it. Records, which are small, come all
at once; weights only when a task needs them. Whoever sees a run's `done`, or an average's record, in a store finds
everything else of it there: they are the last to be written. Free of torch.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train import records, store_lock
from ratfast.train.lock import Holder, find_holder, last_holder
from ratfast.train.outline import outlined, write_outline
from ratfast.train.plan import PRETRAINED, Job, Task
from ratfast.train.remote import Remote, StoreError
from ratfast.train.state import average_file, failure_file, is_done, snapshot_file, updates_made


class Store:
    """No store: the output folder is all there is. What a store does beyond that is nothing here.

    Args:
        output: the output folder.

    Attributes:
        output: the output folder.
        remote: what is at the URL; None.
    """

    remote: Remote | None = None

    def __init__(self, output: Path):
        self.output = output

    def __str__(self) -> str:
        return f"the output folder {self.output}"

    def holder(self) -> Holder | None:
        """The process that says it holds it."""
        return find_holder(self.output)

    def held(self, say: Callable[[str], None]) -> contextlib.AbstractContextManager[object]:
        """Holds it for one command; the output folder has a lock of its own."""
        return contextlib.nullcontext()

    def looked_at(self, tasks: Collection[Task]) -> contextlib.AbstractContextManager[Path]:
        """A folder in which to see how far tasks have come, with nothing written to the output folder."""
        return contextlib.nullcontext(self.output)

    def read(self, name: str) -> str | None:
        """The text of a file of the store; None if there is none."""
        return None

    def fetch(self, names: Iterable[str]) -> None:
        """Gets files that the output folder lacks and the store has."""

    def fetch_done(self, tasks: Collection[Task]) -> None:
        """Gets records of what is done, averages whole, and states; keeps what is done in the output folder alone."""

    def fetch_task(self, task: Task) -> None:
        """Gets the records of what a task has made, an average whole, if it is done in the store alone."""

    def fetch_needs(self, task: Task) -> None:
        """Gets the weights and records of the trainings that a task starts from."""

    def fetch_state(self, job: Job) -> None:
        """Gets the state of a training if that in the store has made more updates."""

    def keep(self, names: Iterable[str]) -> None:
        """Puts files of the output folder into the store."""

    def keep_state(self, job: Job) -> None:
        """Puts the state of a training into the store, if that works at the first trial."""

    def keep_done(self, task: Task) -> None:
        """Puts what a task has made into the store, and takes away the state and the failure that were there."""

    def keep_folder(self, name: str) -> None:
        """Makes a folder of the store hold the files that it has in the output folder, and no others."""

    def keep_failure(self, task: Task) -> None:
        """Puts the record of a failure into the store; if that fails too, so be it."""

    def forget(self, names: Iterable[str]) -> None:
        """Removes files from the store."""


class RemoteStore(Store):
    """A store at a URL.

    Args:
        output: the output folder.
        remote: what is at the URL.
    """

    remote: Remote

    def __init__(self, output: Path, remote: Remote):
        super().__init__(output)
        self.remote = remote
        self._ended = last_holder(output)
        self._heart: store_lock.Heart | None = None

    def __str__(self) -> str:
        return f"the store {self.remote.url}"

    def holder(self) -> Holder | None:
        """The process that says it holds the store."""
        return store_lock.find_holder(self.remote)

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Holds the store for one command."""
        # Whoever held the output folder, which is this process's now, has ended: for that there is a real lock.
        with store_lock.held(self.remote, self._ended, say) as self._heart:
            self.remote.remove_leftovers()
            yield

    def looked_at(self, tasks: Collection[Task]) -> contextlib.AbstractContextManager[Path]:
        """A folder that shows what is done in either place."""
        return outlined(tasks, self.output, self.remote)

    def read(self, name: str) -> str | None:
        """The text of a file of the store; None if there is none."""
        content = self.remote.read(name)
        return None if content is None else content.decode("utf-8", "replace")

    def fetch(self, names: Iterable[str]) -> None:
        """Gets them, several at a time where the driver can."""
        lacking = [name for name in names if not (self.output / name).is_file()]
        self.remote.each(lambda name: self.remote.download(name, self.output / name), lacking)

    def fetch_done(self, tasks: Collection[Task]) -> None:
        """Brings both places to the same records, by one list of the store's files."""
        there = self.remote.sizes()
        jobs = [task for task in tasks if isinstance(task, Job)]
        new = [
            job.name
            for job in jobs
            if not is_done(job, self.output) and f"{job.name}/{records.DONE}" in there
        ]
        self._write([f"{name}/{file}" for name in new for file in (records.RUN, records.RESULTS)])
        self._write(
            [f"{name}/{records.DONE}" for name in new if (self.output / name / records.RUN).is_file()]
        )
        for job in jobs:
            if is_done(job, self.output) and f"{job.name}/{records.DONE}" not in there:
                self.keep_done(job)
        begun = [job for job in jobs if _state(job) in there]
        for job in begun:
            if not is_done(job, self.output):
                self.fetch_state(job)
        # What a process that was lost left there, or one that died before it could remove it.
        self.forget(_state(job) for job in begun if is_done(job, self.output))
        if not all(is_done(job, self.output) for job in jobs):
            return  # averages are made again once all jobs are done
        for task in tasks:
            if isinstance(task, Job):
                continue
            if is_done(task, self.output) and f"{task.name}.json" not in there:
                self.keep_done(task)
            elif f"{task.name}.json" in there:
                self.fetch([f"{task.name}.safetensors", f"{task.name}.json"])

    def fetch_task(self, task: Task) -> None:
        """Gets its records."""
        if isinstance(task, Job):
            files = (records.RUN, records.RESULTS, records.DONE)
            if not is_done(task, self.output) and self.remote.exists(f"{task.name}/{records.DONE}"):
                self._write([f"{task.name}/{file}" for file in files])
        elif self.remote.exists(f"{task.name}.json"):
            self.fetch([f"{task.name}.safetensors", f"{task.name}.json"])

    def fetch_needs(self, task: Task) -> None:
        """Gets what the output folder lacks of the runs that a task names."""
        for name in sorted(task.starts - {PRETRAINED}):
            if not Path(name).is_absolute() and not Path(name).is_file():  # others are the user's
                files = (records.RUN, records.RESULTS, records.CHECKPOINT, records.DONE)
                for path, file in ((self.output / name / file, f"{name}/{file}") for file in files):
                    if not path.is_file() and not self.remote.download(file, path):
                        break

    def fetch_state(self, job: Job) -> None:
        """Reads the header of the store's state, and the rest if it is ahead."""
        name = _state(job)
        size = self.remote.size(name)
        if size is None:
            return
        with tempfile.TemporaryDirectory(prefix="ratfast-outline-") as folder:
            write_outline(self.remote, name, size, Path(folder) / name)
            ahead = updates_made(job, Path(folder)) > updates_made(job, self.output)
        if ahead:
            self.remote.download(name, self.output / name)

    def keep(self, names: Iterable[str]) -> None:
        """Puts them there, several at a time where the driver can."""
        self._require_held()
        self.remote.each(lambda name: self.remote.upload(self.output / name, name), names)

    def keep_state(self, job: Job) -> None:
        """Puts the state there; the next one is another trial."""
        self._require_held()
        self.remote.upload(self.output / _state(job), _state(job), patient=False)

    def keep_done(self, task: Task) -> None:
        """Puts there what it has made, unless that is there."""
        self._require_held()
        if isinstance(task, Job):
            if not self.remote.exists(f"{task.name}/{records.DONE}"):
                self._keep_run(task)
            self.forget([_state(task)])
        elif not self.remote.exists(f"{task.name}.json"):
            weights = average_file(task, self.output)
            self.keep([f"{task.name}{weights.suffix}"])
            self.keep([f"{task.name}.json"])
        self.forget([_failure(task)])

    def keep_folder(self, name: str) -> None:
        """Puts the files of a folder there and removes others."""
        folder = self.output / name
        here = {path.relative_to(self.output).as_posix() for path in folder.rglob("*") if path.is_file()}
        self.forget(
            other for other in self.remote.sizes() if other.startswith(f"{name}/") and other not in here
        )
        self.keep(sorted(here))

    def keep_failure(self, task: Task) -> None:
        """Tries to put it there, once."""
        name = _failure(task)
        with contextlib.suppress(StoreError, OSError):
            self.remote.upload(self.output / name, name, patient=False)

    def forget(self, names: Iterable[str]) -> None:
        """Removes them."""
        self._require_held()
        self.remote.remove(names)

    def _keep_run(self, job: Job) -> None:
        folder = self.output / job.name
        names = sorted(path.name for path in folder.iterdir() if path.name != records.DONE)
        if records.CHECKPOINT not in names:
            raise InputError(
                f"the weights of {job.name} are neither in the output folder {self.output} nor in {self}, expected "
                "--store with the one that they were kept in"
            )
        self.keep(f"{job.name}/{name}" for name in names)
        self.keep([f"{job.name}/{records.DONE}"])

    def _write(self, names: list[str]) -> None:
        """Gets those of small files that are there."""
        for start in range(0, len(names), 256):
            for name, content in self.remote.read_all(names[start : start + 256]).items():
                path = self.output / name
                path.parent.mkdir(parents=True, exist_ok=True)
                records.write_text(path, content.decode())

    def _require_held(self) -> None:
        """Raises InputError if another command has taken the store from this one, which it had not heard of."""
        if self._heart is not None and self._heart.successor is not None:
            raise store_lock.in_use(self.remote, self._heart.successor)


def open_store(recipe: Recipe) -> Store:
    """The store of a recipe.

    Raises:
        InputError: its URL is not usable, or a package for it is missing.
    """
    output, url = Path(recipe.output.dir), recipe.output.store
    if url is None:
        return Store(output)
    remote = Remote(url)
    if remote.folder is not None and remote.folder.resolve() == output.resolve():
        raise InputError(f"output.store is {url!r}, which is the output folder itself, expected another")
    return RemoteStore(output, remote)


def _state(job: Job) -> str:
    return snapshot_file(job, Path()).as_posix()


def _failure(task: Task) -> str:
    return failure_file(task, Path()).as_posix()
