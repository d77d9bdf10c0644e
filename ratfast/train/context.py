"""What all trainings of a recipe share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ratfast.config import Recipe
from ratfast.train.progress import Display
from ratfast.train.tasks import Tasks


@dataclass(frozen=True)
class Context:
    """What all trainings of a recipe share.

    Attributes:
        recipe: what to do.
        tasks: its data sets.
        device: where to train.
        precision: `"float32"` or `"bfloat16"`.
        output: the output folder.
        display: what a person sees.
    """

    recipe: Recipe
    tasks: Tasks
    device: torch.device
    precision: str
    output: Path
    display: Display
