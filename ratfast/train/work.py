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
from ratfast.train.remote import StoreError
from ratfast.train.state import is_done


def carry_out(task: Task, context: Context) -> None:
    """Trains or averages, unless it has been done; what the task needs is done.

    Raises:
        InputError: starting weights do not fit, an image cannot be decoded, or the loss stopped being finite.
        StoreError: weights that it needs are in the store, which cannot be read.
    """
    if not is_done(task, context.output):
        context.store.fetch_needs(task)
        if isinstance(task, Job):
            run_job(task, context)
        else:
            make_average(task, context)
    forget_failure(task, context.output)


def carry_out_and_keep(task: Task, context: Context) -> None:
    """The same, and puts what was made into the store.

    Where that fails it is said, and not an error yet: the command tries again at its end, and others that share the
    output folder do not need the store.
    """
    carry_out(task, context)
    try:
        context.store.keep_done(task)
    except StoreError as error:
        context.display.say(f"{task.name}: {error}; so far it is in {context.output} alone")


def kernels(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    """The choice of cuDNN's kernels that the official release makes, under its protocol; on a CPU it means nothing."""
    if recipe.protocol.name != "official":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
