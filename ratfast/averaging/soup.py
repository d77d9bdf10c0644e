"""Greedy soups: models added one by one, each kept if the average gets no worse with it.

Method: Wortsman et al., "Model soups" (arXiv 2203.05482), recipe 1; accepting equal scores as Rame et al.
do in "Model Ratatouille" (arXiv 2212.10445).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratfast import ops
from ratfast.averaging.pool import Pool
from ratfast.errors import InputError


@dataclass(frozen=True)
class Trial:
    """One candidate of a greedy soup.

    Attributes:
        model: its index in the pool.
        score: of the soup with it.
        accepted: whether it stayed.
        alone: its own score, if the models were ranked by it.
    """

    model: int
    score: float
    accepted: bool
    alone: float | None = None


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

    @property
    def score(self) -> float:
        """The soup's score."""
        return [trial.score for trial in self.log if trial.accepted][-1]


@torch.no_grad()
def greedy_soup(
    pool: Pool, evaluate: Callable[[dict[str, Tensor]], float], order: Sequence[int] | None = None
) -> GreedySoup:
    """Selects the models whose average scores best, greedily.

    A running sum is kept, so that a candidate costs one read of its own row, whatever the size of the soup: N
    reads in all. The sum with a rejected candidate is dropped, not subtracted from, so nothing drifts.

    Args:
        pool: the models.
        evaluate: the score of a state dict, larger is better. The tensors it gets are valid only during the
            call. A score that is not a number counts as worse than any.
        order: indices of the models to try, best first, each at most once. By default each model is first
            evaluated alone, at the price of one more read and evaluation each, and they are tried from the
            highest score to the lowest.

    Returns:
        The selected members, their weights, and the log.

    Raises:
        InputError: `order` is not a list of different models of the pool, or no score is a number.
    """
    row = pool.new_row()
    alone: dict[int, float] = {}
    if order is None:
        for index in range(len(pool)):
            alone[index] = _score(pool, evaluate, row, [pool.summands(index)], [[1.0]], [index])
        order = sorted(alone, key=lambda index: alone[index], reverse=True)
    else:
        order = [int(index) for index in order]
        if len(set(order)) != len(order) or not order or not all(0 <= i < len(pool) for i in order):
            raise InputError(f"order is {order}, expected different numbers from 0 to {len(pool) - 1}")

    total = [_wide(section) for section in pool.sections_of(row)]
    spare = [torch.empty_like(section) for section in total]
    best = -math.inf
    members: list[int] = []
    log: list[Trial] = []
    for index in order:
        size = len(members) + 1
        sources = [pool.summands(index)] if not members else [total, pool.summands(index)]
        weights = [[1.0] * len(sources), [1.0 / size] * len(sources)]
        score = _score(pool, evaluate, row, sources, weights, [*members, index], spare)
        accepted = score >= best and score > -math.inf
        if accepted:
            best = score
            members.append(index)
            total, spare = spare, total
        log.append(Trial(index, score, accepted, alone.get(index)))
    if not members:
        raise InputError("no model has a score that is a number, so there is nothing to select")
    return GreedySoup(_weights(len(pool), members), members, log)


def _score(
    pool: Pool,
    evaluate: Callable[[dict[str, Tensor]], float],
    row: Tensor,
    sources: list[list[Tensor]],
    weights: list[list[float]],
    members: list[int],
    new_total: list[Tensor] | None = None,
) -> float:
    """Writes a candidate into `row`, and the sum it is the average of into `new_total`; evaluates it."""
    candidate = pool.sections_of(row)
    ops.mix_([candidate] if new_total is None else [new_total, candidate], sources, weights)
    pool.fill_kept(row, _weights(len(pool), members))
    score = float(evaluate(pool.views(row)))
    return -math.inf if math.isnan(score) else score


def _weights(count: int, members: Sequence[int]) -> list[float]:
    chosen = set(members)
    return [1.0 / len(members) if index in chosen else 0.0 for index in range(count)]


def _wide(section: Tensor) -> Tensor:
    return torch.empty_like(section, dtype=torch.promote_types(section.dtype, torch.float32))
