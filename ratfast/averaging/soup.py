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

from ratfast import ops
from ratfast.averaging.files import average_files
from ratfast.averaging.members import Model
from ratfast.averaging.model_rows import ModelRow, new_row
from ratfast.averaging.pool import Pool
from ratfast.averaging.selection import dagger_list, rank
from ratfast.averaging.tensors import average
from ratfast.checkpoints.tensors import save
from ratfast.errors import InputError
from ratfast.version import __version__

_LINE = 64  # bytes


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
    """The result of a greedy selection; `pool.average(soup.weights)` is the soup.

    Attributes:
        weights: one for each model of the pool: 1 / number of members, or 0.
        members: indices of the models in the soup, in the order in which they were added.
        log: every candidate, in the order of trial.
    """

    weights: list[float]
    members: list[int]
    log: list[Trial]
    _pool: Pool = field(repr=False, compare=False)

    @property
    def score(self) -> float:
        """The soup's score."""
        return [trial.score for trial in self.log if trial.accepted][-1]

    def average(self) -> dict[str, Tensor]:
        """The soup itself: new tensors by name, on the pool's device."""
        return self._pool.average(self.weights)

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

    A running sum is kept (in float64 on the CPU), so that a candidate costs one read of its own row, whatever the
    size of the soup: N reads in all. The sum with a rejected candidate is dropped, not subtracted from, so nothing
    drifts. Models that are evaluated alone are handed over where they lie.

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

    trial = _Trial(pool)
    best: float | None = None
    members: list[int] = []
    log: list[Trial] = []
    for index in order:
        if evaluated and not members:
            score = alone[index]  # is known already
        elif not members:
            score = _score_alone(pool, evaluate, index)
        else:
            score = _number(evaluate(trial.with_candidate(members, index)))
        accepted = score > -math.inf and (best is None or bool(accept(score, best)))
        log.append(Trial(index, pool.names[index], score, best, accepted, alone.get(index)))
        if accepted:
            best = score
            members.append(index)
            trial.accept(index)
    if not members:
        raise InputError("no model has a score that is a number, so there is nothing to select")
    return GreedySoup(_weights(len(pool), members), members, log, pool)


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


class _Trial:
    """The soup that is tried: one row, written anew for every candidate, and the sum that it is the mean of."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._members = 0
        self._total: list[Tensor] = []  # of the members; of one member its own summands, read where they are
        self._row: ModelRow | None = None
        self._spare: list[list[Tensor]] = []  # memory for sums: with the candidate, and without it

    def with_candidate(self, members: Sequence[int], index: int) -> dict[str, Tensor]:
        """The average of the members and a candidate, valid until the next one."""
        if self._row is None:
            self._row = self._pool.new_row()
            self._state = self._pool.state(self._row)
            self._mean = self._pool.sections_of(self._row)
            self._spare = [_wide(self._mean) for _ in range(2)]
        size = len(members) + 1
        ops.mix_(
            [self._spare[0], self._mean],
            [self._total, self._pool.summands(index)],
            [[1.0, 1.0], [1.0 / size, 1.0 / size]],
        )
        self._pool.fill_kept(self._row, _weights(len(self._pool), [*members, index]))
        return dict(self._state)

    def accept(self, index: int) -> None:
        """Takes the last candidate into the soup; the first member needs no trial before."""
        self._members += 1
        if self._members == 1:
            self._total = self._pool.summands(index)
            return
        self._spare.reverse()
        self._total = self._spare[1]


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


def _weights(count: int, members: Sequence[int]) -> list[float]:
    chosen = set(members)
    return [1.0 / len(members) if index in chosen else 0.0 for index in range(count)]


def _wide(sections: Sequence[Tensor]) -> list[Tensor]:
    """Memory for sums over models: in the types that sums are held in on the sections' device.

    Each sum lies to the lines of 64 bytes as its section does, so that both can be written in whole lines in one pass.
    """
    dtypes = [
        torch.promote_types(section.dtype, torch.float32 if section.is_cuda else torch.float64)
        for section in sections
    ]
    places, end = [], 0
    for section, dtype in zip(sections, dtypes, strict=True):
        wanted = section.data_ptr() * (dtype.itemsize // section.itemsize) % _LINE
        places.append(end + (wanted - end) % _LINE)
        end = places[-1] + section.numel() * dtype.itemsize
    memory = new_row(end, sections[0].device) if sections else torch.empty(0)
    return [
        memory[place : place + section.numel() * dtype.itemsize].view(dtype)
        for place, section, dtype in zip(places, sections, dtypes, strict=True)
    ]
