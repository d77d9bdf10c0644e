"""What all trainings of a recipe share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ratfast.config import Recipe
from ratfast.train import host
from ratfast.train.progress import View
from ratfast.train.shared import Shared
from ratfast.train.store import Store
from ratfast.train.tasks import Tasks


@dataclass(frozen=True)
class Context:
    """What all trainings of a recipe share.

    Attributes:
        recipe: what to do.
        tasks: its data sets.
        device: where to train.
        precision: `"float32"` or `"bfloat16"`.
        store: the output folder, and where its files are kept beside it.
        display: told what goes on.
    """

    recipe: Recipe
    tasks: Tasks
    device: torch.device
    precision: str
    store: Store
    display: View

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.store.output


def open_context(shared: Shared, store: Store, view: View) -> Context:
    """The context of a process that carries out tasks of someone else's plan."""
    device = torch.device(shared.device)
    host.prepare(device, shared.threads)
    tasks = Tasks(shared.recipe, device, view, shared.datasets)
    return Context(shared.recipe, tasks, device, shared.precision, store, view)
