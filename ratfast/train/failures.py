"""What went wrong with a task, in one sentence; and the tasks that failed, together."""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ratfast.errors import InputError, UnfinishedError
from ratfast.train import records
from ratfast.train.plan import Task
from ratfast.train.remote import StoreError
from ratfast.train.state import failure_file
from ratfast.train.store import Store

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Failure:
    """Why a task could not be carried out.

    Attributes:
        sentence: says it, without a full stop.
        input_is_wrong: it would fail again: what was given is wrong.
        details: a traceback, or empty.
    """

    sentence: str
    input_is_wrong: bool = False
    details: str = ""


def failure_of(error: Exception) -> Failure:
    """What to say of an exception."""
    if isinstance(error, InputError):
        return Failure(_line(error), input_is_wrong=True)
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return Failure(sentence_of(error) or f"{type(error).__name__}: {_line(error)}", details=details)


def sentence_of(error: BaseException) -> str | None:
    """A sentence for what is no defect of the program: full memory or disk, a store out of reach; else None."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, StoreError):
        return text
    if kind == "OutOfMemoryError" or "CUDA out of memory" in text:
        return "the GPU's memory is full: lower train.batch_size or data.eval_cache_device_gib, or free some"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return "the machine's memory is full: lower train.batch_size, train.workers or data.eval_cache_gib"
    if isinstance(error, OSError) and error.errno in _FULL:
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        return f"cannot write{where}: {os.strerror(error.errno).lower()}"
    return None


def failure_of_exit(code: int) -> Failure:
    """What to say of a worker that ended by itself, by the code of its process."""
    if code >= 0:
        return Failure(f"its worker ended with exit code {code}")
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    memory = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return Failure(f"its worker was ended by {name}{memory}")


def record_failure(task: Task, failure: Failure, store: Store) -> None:
    """Writes the task's failure beside where its results would be; a disk that is full is no second failure."""
    path = failure_file(task, store.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_text(path, f"{failure.sentence}\n{failure.details}")
    except OSError:
        return
    store.keep_failure(task)


def forget_failure(task: Task, output: Path) -> None:
    """Removes the record of an earlier failure."""
    failure_file(task, output).unlink(missing_ok=True)


def unfinished(failed: Iterable[tuple[str, Failure, int]], waiting: Iterable[str]) -> UnfinishedError:
    """The error that names what is not done.

    Args:
        failed: name, failure and number of trials of each task that failed.
        waiting: names of the tasks that need one of those.
    """
    failed, waiting = list(failed), list(waiting)
    lines = []
    for name, failure, trials in failed:
        often = f" ({trials} times)" if trials > 1 else ""
        lines.append(f"{name} failed{often}: {failure.sentence}")
    if waiting:
        listed = ", ".join(waiting[:5]) + (f" and {len(waiting) - 5} more" if len(waiting) > 5 else "")
        lines.append(f"not done, since they need it: {listed}")
    return UnfinishedError(lines, input_is_wrong=all(failure.input_is_wrong for _, failure, _ in failed))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
