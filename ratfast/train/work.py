"""One task of a plan carried out, whether by the command itself or by one of its workers."""

from __future__ import annotations

import contextlib

import torch

from ratfast.config import Recipe
from ratfast.train.averages import make_average
from ratfast.train.context import Context
from ratfast.train.failures import forget_failure
from ratfast.train.job import run_job
from ratfast.train.plan import Job, Task
from ratfast.train.state import is_done


def carry_out(task: Task, context: Context) -> None:
    """Trains or averages; what the task needs is done.

    Raises:
        InputError: starting weights do not fit, an image cannot be decoded, or the loss stopped being finite.
        StoreError: the store could not be read or written; what was made is in the output folder.
    """
    if not is_done(task, context.output):  # a process before may have come as far as that
        context.store.fetch_needs(task)
        if isinstance(task, Job):
            context.store.fetch_state(task)
            run_job(task, context)
        else:
            make_average(task, context)
    context.store.keep_done(task)
    forget_failure(task, context.output)


def kernels(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    """The choice of cuDNN's kernels that the official release makes, under its protocol; on a CPU it means nothing."""
    if recipe.protocol.name != "official":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
