"""A selection that leaves models off early decides as one that evaluates all of them in full."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast.averaging import Pool, greedy_soup
from ratfast.train.contest import Contest


@st.composite
def cases(draw):
    """Which images of which batch each model classifies right."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    models = draw(st.integers(1, 8))
    seed, good = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    random = np.random.default_rng(seed)
    return [[random.random(size) < good for size in sizes] for _ in range(models)]


@settings(max_examples=300, deadline=None)
@given(cases())
def test_scores_compare_with_the_best_as_full_ones(models):
    contest = Contest([len(batch) for batch in models[0]])
    total = sum(len(batch) for batch in models[0])
    best, asked = None, 0
    for batches in models:
        seen = []

        def correct(number, batches=batches, seen=seen):
            seen.append(number)
            return int(batches[number].sum())

        full = sum(int(batch.sum()) for batch in batches) / total
        score = contest.score(correct)
        asked += sum(len(batches[number]) for number in seen)
        assert len(seen) == len(set(seen))
        if best is None or full >= best:
            assert score == full and len(seen) == len(batches)
            best = full
        else:
            assert full <= score < best
    assert (contest.evaluated, contest.spared) == (asked, total * len(models) - asked)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_greedy_soup_takes_the_same_members(models):
    # An average's images are right where most of its members' are, so that soups too are better or worse.
    pool = Pool.open(
        [{"right": torch.tensor(np.concatenate(batches), dtype=torch.float64)} for batches in models]
    )
    sizes = [len(batch) for batch in models[0]]
    ends = np.cumsum(sizes)
    contest = Contest(sizes)

    def right(state):
        return state["right"].numpy() > 0.5

    def left_off_early(state):
        parts = np.split(right(state), ends[:-1])
        return contest.score(lambda number: int(parts[number].sum()))

    order = range(len(models))
    early = greedy_soup(pool, left_off_early, order=order)
    full = greedy_soup(pool, lambda state: int(right(state).sum()) / sum(sizes), order=order)
    assert early.members == full.members and early.score == full.score


def test_a_model_that_is_worse_is_left_where_the_best_is_worst():
    contest = Contest([10, 10, 10])
    assert contest.score([10, 10, 4].__getitem__) == 24 / 30
    asked = []

    def correct(number):
        asked.append(number)
        return [9, 9, 2][number]

    assert contest.score(correct) == pytest.approx(22 / 30)
    assert asked == [2] and contest.spared == 20
