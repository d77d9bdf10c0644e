"""What the command that carries a plan out tells its workers once, as plain data; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ratfast.config import Recipe
from ratfast.data import DomainDataset


@dataclass(frozen=True)
class Shared:
    """Everything that is the same for all tasks of a plan, in a form that goes to other processes.

    Attributes:
        recipe: what to do.
        datasets: by name, the target and all auxiliary data sets, checked, with unreadable images left out.
        device: where to train: `"cpu"`, `"cuda"` or `"cuda:N"`.
        precision: `"float32"` or `"bfloat16"`.
        threads: of the CPU; None for torch's own choice.
    """

    recipe: Recipe
    datasets: Mapping[str, DomainDataset]
    device: str
    precision: str
    threads: int | None
