"""One task of a plan carried out, whether by the command itself or by one of its workers."""

from __future__ import annotations

from ratfast.train.averages import make_average
from ratfast.train.context import Context
from ratfast.train.job import run_job
from ratfast.train.plan import Job, Task


def carry_out(task: Task, context: Context) -> None:
    """Trains or averages; what the task needs is done.

    Raises:
        InputError: starting weights do not fit, an image cannot be decoded, or the loss stopped being finite.
    """
    if isinstance(task, Job):
        run_job(task, context)
    else:
        make_average(task, context)
