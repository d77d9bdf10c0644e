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


def carry_out(task: Task, context: Context) -> None:
    """Trains or averages; what the task needs is done.

    Raises:
        InputError: starting weights do not fit, an image cannot be decoded, or the loss stopped being finite.
    """
    if isinstance(task, Job):
        run_job(task, context)
    else:
        make_average(task, context)
    forget_failure(task, context.output)


def kernels(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    """The choice of cuDNN's kernels that the official release makes, under its protocol; on a CPU it means nothing."""
    if recipe.protocol.name != "official":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
