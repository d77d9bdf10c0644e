"""Soups of a pool: models chosen one by one by a score (greedy), and the average over all trials (dagger).

Method: Wortsman et al., "Model soups" (arXiv 2203.05482), recipe 1. Equal scores are accepted as in Rame et al.,
"Model Ratatouille" (arXiv 2212.10445); the code of model-soups asks for an improvement (`accept=operator.gt`).
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ratfast.averaging.files import average_files
from ratfast.averaging.growing import GrowingSoup, shares
from ratfast.averaging.members import Model
from ratfast.averaging.model_rows import ModelRow
from ratfast.averaging.pool import Pool
from ratfast.averaging.selection import dagger_list, rank
from ratfast.averaging.tensors import average
from ratfast.checkpoints.tensors import save
from ratfast.errors import InputError
from ratfast.version import __version__


@dataclass(frozen=True)
class Trial:
    """One candidate of a greedy soup.

    Attributes:
        model: its index in the pool.
        name: its name there.
        score: of the soup with it; minus infinity where that is not a number.
        before: of the soup without it; None where there is no soup yet.
        accepted: whether it stayed.
        alone: the score that it was ranked by: its own, or the stored one; None if an order was given.
    """

    model: int
    name: str
    score: float
    before: float | None
    accepted: bool
    alone: float | None = None

    @property
    def reason(self) -> str:
        """Why the candidate stayed or not, as one sentence."""
        if self.score == -math.inf:
            return f"{self.name} was refused: the score with it is not a number"
        verdict = "accepted" if self.accepted else "refused"
        if self.before is None:
            return f"{self.name} was {verdict}: it scores {self.score:.6g} alone"
        return f"{self.name} was {verdict}: {self.score:.6g} with it, {self.before:.6g} without"


@dataclass(frozen=True)
class GreedySoup:
    """The result of a greedy selection; `average()` is the soup, the same as `pool.average(soup.weights)`.

    Attributes:
        weights: one for each model of the pool: 1 / number of members, or 0.
        members: indices of the models in the soup, in the order in which they were added.
        log: every candidate, in the order of trial.
    """

    weights: list[float]
    members: list[int]
    log: list[Trial]
    _pool: Pool = field(repr=False, compare=False)
    _rows: list[ModelRow] = field(
        default_factory=list, repr=False, compare=False
    )  # free for the first average

    @property
    def score(self) -> float:
        """The soup's score."""
        return [trial.score for trial in self.log if trial.accepted][-1]

    def average(self) -> dict[str, Tensor]:
        """The soup itself: new tensors by name, on the pool's device.

        The first call gives the memory in which `evaluate` found the averages: new memory would take longer than the
        sum.
        """
        return self._pool.average(self.weights, self._rows.pop() if self._rows else None)

    def note(self) -> dict[str, Any]:
        """What is to be said about the selection beside an average's weights, as JSON-able values.

        A score of minus infinity, which JSON does not know, is None.
        """
        log = [
            {name: None if value == -math.inf else value for name, value in asdict(trial).items()}
            for trial in self.log
        ]
        return {"score": self.score, "members": [self._pool.names[i] for i in self.members], "log": log}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the soup as a safetensors file whose metadata hold inputs, weights, and the log of the selection.

        Where all models are files, they are averaged from file to file, so that `ratfast.averaging.files.again` makes
        the same bytes once more.

        Raises:
            InputError: the file cannot be written there.
            OSError: writing failed, such as on a full disk; nothing is left behind.
        """
        names = self._pool.names
        if all(os.path.isfile(name) for name in names):
            average_files(
                names,
                path,
                weights=self.weights,
                buffers=self._pool.policy,
                method="greedy",
                selection=self.note(),
            )
            return
        note = {"kind": "average", "method": "greedy", "weights": self.weights}
        note |= {"inputs": [{"model": name} for name in names], "buffers": self._pool.policy}
        save(self.average(), path, note | {"selection": self.note(), "version": __version__})


@torch.no_grad()
def greedy_soup(
    pool: Pool,
    evaluate: Callable[[dict[str, Tensor]], float],
    order: Sequence[int] | None = None,
    *,
    scores: Sequence[float] | None = None,
    accept: Callable[[float, float], bool] = operator.ge,
) -> GreedySoup:
    """Selects the models whose average scores best, greedily.

    All but the last few members are kept as a running sum (in float64 on the CPU), so that a candidate costs a few
    reads of rows, whatever the size of the soup, and memory is needed for the average and that one sum. A rejected
    candidate never gets into the sum, so nothing drifts.
    Models that are evaluated alone are handed over where they lie.

    Args:
        pool: the models.
        evaluate: the score of a state dict, larger is better. The tensors it gets are valid only during the call, and
            not its to write to: the next call gets the same memory with other numbers, or a model of the pool as it
            lies there. A score that is not a number counts as worse than any.
        order: indices of the models to try, best first, each at most once.
        scores: one number for each model to rank them by, such as stored validation accuracies; the highest is
            tried first, and equal ones in the order of the pool. Without `order` and `scores` each model is first
            evaluated alone, at the price of N - 1 more evaluations.
        accept: whether a candidate stays, given the soup's score with it and without it.

    Returns:
        The selected members, their weights, and the log.

    Raises:
        InputError: `order` is not a list of different models of the pool, `scores` are not one number for each
            model, both are given, `evaluate` returns no number or writes to a model, or no score is a number.
    """
    alone: dict[int, float] = {}
    evaluated = order is None and scores is None
    if order is not None and scores is not None:
        raise InputError("order and scores were both given, expected one of them")
    if order is None:
        if scores is None:
            scores = [_score_alone(pool, evaluate, index) for index in range(len(pool))]
        order = rank(scores, len(pool))
        alone = {index: float(scores[index]) for index in order}
    else:
        order = [int(index) for index in order]
        if len(set(order)) != len(order) or not order or not all(0 <= i < len(pool) for i in order):
            raise InputError(f"order is {order}, expected different numbers from 0 to {len(pool) - 1}")

    soup = GrowingSoup(pool)
    best: float | None = None
    log: list[Trial] = []
    for index in order:
        if evaluated and not soup.members:
            score = alone[index]  # is known already
        elif not soup.members:
            score = _score_alone(pool, evaluate, index)
        else:
            score = _number(evaluate(soup.with_candidate(index)))
        accepted = score > -math.inf and (best is None or bool(accept(score, best)))
        log.append(Trial(index, pool.names[index], score, best, accepted, alone.get(index)))
        if accepted:
            best = score
            soup.accept(index)
    if not soup.members:
        raise InputError("no model has a score that is a number, so there is nothing to select")
    rows = [] if soup.row is None or soup.row.is_inference else [soup.row]
    return GreedySoup(shares(len(pool), soup.members), soup.members, log, pool, rows)


def dagger(trials: Iterable[Iterable[Model]], *, buffers: str = "error") -> dict[str, Tensor]:
    """The uniform average over all runs of all trials, as the dagger rows of Model Ratatouille (arXiv 2212.10445).

    Args:
        trials: the runs of each trial; trials may differ in their number of runs, and every run counts the same.
        buffers: as in `ratfast.average`.

    Returns:
        As `ratfast.average`.

    Raises:
        InputError: there are no runs, a file stands twice, or the models do not fit together.
    """
    return average(dagger_list(trials), buffers=buffers)


def _score_alone(pool: Pool, evaluate: Callable[[dict[str, Tensor]], float], index: int) -> float:
    """The score of a model by itself, which `evaluate` gets where it lies."""
    row = pool.alone(index)
    before = row.versions
    score = _number(evaluate(pool.state(row)))
    if row.versions != before:
        raise InputError(
            f"the function that evaluates a soup wrote into the tensors of {pool.names[index]}, which are the pool's "
            "own; let it work on copies"
        )
    return score


def _number(value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"the function that evaluates a soup returned {value!r}, expected a number"
        ) from None
    return -math.inf if math.isnan(score) else score
