"""The rows of the paper's table: what each method is, and which trainings it needs.

A *sweep* is a set of fine-tunings on the target with the hyperparameter draws of the protocol. Sweeps differ in where
their runs start:

- `vanilla`: pre-trained weights, a new head;
- `plain`: pre-trained weights, the head of a linear probe;
- `target`: auxiliary weights in turn (the pre-trained ones too), that head, and a short probe of their own;
- `fusing`: an interpolation of the pre-trained and all auxiliary weights, that head, and a short probe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ratfast.config.schema import ROWS
from ratfast.protocol import STEPS

if TYPE_CHECKING:
    from ratfast.averaging.along import AlongRun

SWEEPS: dict[str, tuple[str, ...]] = {
    "vanilla": ("vanilla",),
    "erm": ("plain",),
    "moving-average": ("plain",),
    "swad": ("plain",),
    "soups": ("plain",),
    "inter-training": ("target",),
    "fusing": ("fusing",),
    "ratatouille": ("target",),
}
"""By row of a recipe, the sweeps that it needs."""

ALONG = ("moving-average", "swad")
"""Rows that are averages along the runs of the sweep `plain`."""

MOVING_AVERAGE_START = 100
"""Updates before a moving average begins, of a full run of `STEPS` (arXiv 2110.10832)."""


@dataclass(frozen=True)
class Method:
    """A line of the final table.

    Attributes:
        row: the row of the recipe that it belongs to.
        label: what it is called.
        selection: how the network is chosen.
        paper: where it is defined.
        definition: in a sentence.
        sweep: whose runs it looks at.
        average: the key of an average over runs, `"along"` for one along each run, None for single runs.
    """

    row: str
    label: str
    selection: str
    paper: str
    definition: str
    sweep: str
    average: str | None = None


BEST = "ID val"
"""Selection of the run, and of its step, with the highest accuracy on the training domains' held-out images."""

METHODS = (
    Method(
        "vanilla", "Vanilla fine-tuning", BEST, "Gulrajani and Lopez-Paz, arXiv 2007.01434",
        "the best run from pre-trained weights with a new head", "vanilla",
    ),
    Method(
        "erm", "ERM (probed head)", BEST, "Kumar et al., arXiv 2202.10054",
        "the best run from pre-trained weights with the head of a linear probe", "plain",
    ),
    Method(
        "moving-average", "Moving average", BEST, "Arpit et al., arXiv 2110.10832",
        "of the same runs, the mean of the weights of each from its first hundredth of steps on; the best of these",
        "plain", "along",
    ),
    Method(
        "swad", "SWAD", "loss-aware", "Cha et al., arXiv 2102.08604",
        "of the same runs, the mean of the weights of each over the valley of its validation loss; the best of these",
        "plain", "along",
    ),
    Method(
        "soups", "Soups/DiWA", "uniform", "Rame et al., arXiv 2205.09739",
        "the average of the same runs", "plain", "soup-uniform",
    ),
    Method(
        "soups", "Soups/DiWA", "greedy", "Wortsman et al., arXiv 2203.05482",
        "the average of those of the same runs that each improved it, tried from the best down", "plain",
        "soup-greedy",
    ),
    Method(
        "soups", "Soups/DiWA (dagger)", "uniform, all trials", "Rame et al., arXiv 2205.09739",
        "the average of the same runs of all trials", "plain", "soup-dagger",
    ),
    Method(
        "inter-training", "Inter-training", BEST, "Phang et al., arXiv 1811.01088",
        "the best run from auxiliary weights", "target",
    ),
    Method(
        "fusing", "Fusing", BEST, "Choshen et al., arXiv 2204.03044",
        "the best run from a random interpolation of the pre-trained and auxiliary weights", "fusing",
    ),
    Method(
        "ratatouille", "Ratatouille", "uniform", "Rame et al., arXiv 2212.10445",
        "the average of the runs from auxiliary weights", "target", "uniform",
    ),
    Method(
        "ratatouille", "Ratatouille", "greedy", "Rame et al., arXiv 2212.10445",
        "the average of those of these runs that each improved it, tried from the best down", "target", "greedy",
    ),
    Method(
        "ratatouille", "Ratatouille (dagger)", "uniform, all trials", "Rame et al., arXiv 2212.10445",
        "the average of these runs of all trials", "target", "dagger",
    ),
)  # fmt: skip
"""The table, top to bottom."""


def row_names(asked: Iterable[str]) -> tuple[str, ...]:
    """The rows that a recipe asks for, in the table's order; "all" is every one."""
    asked = set(asked)
    return tuple(row for row in ROWS if row in asked or "all" in asked)


def along_names(asked: Iterable[str]) -> tuple[str, ...]:
    """Which averages along a run the recipe's rows need."""
    return tuple(row for row in row_names(asked) if row in ALONG)


def start_along(name: str, steps: int) -> AlongRun:
    """A new average along a run of so many updates."""
    from ratfast.averaging.along import SWAD, MovingAverage

    if name == "swad":
        return SWAD()
    return MovingAverage(start=max(1, round(MOVING_AVERAGE_START * steps / STEPS)))
