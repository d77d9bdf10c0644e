"""Greedy soups against the same selection done by averaging from scratch for every candidate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ratfast
from ratfast import InputError, Pool, greedy_soup


def brute_force(states, evaluate, order):
    """Averages all members of every candidate anew, in float64: O(N^2) reads."""
    members, best = [], -math.inf
    for index in order:
        chosen = [states[i] for i in [*members, index]]
        average = {
            name: (sum(s[name].double() for s in chosen) / len(chosen)).to(states[0][name].dtype)
            for name in states[0]
        }
        score = evaluate(average)
        if score >= best:
            best = score
            members.append(index)
    return members, best


def closeness(target):
    """A score that depends on every element, in steps coarse enough that rounding does not matter."""
    return lambda state: (
        -round(sum((state[n].double() - target[n].double()).square().sum().item() for n in state), 3)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_brute_force(seed, count, ordered, dtype):
    generator = torch.Generator().manual_seed(seed)

    def state():
        return {
            "a": torch.randn(20, generator=generator).to(dtype),
            "b": torch.randn(3, 3, generator=generator).double(),
        }

    states, target = [state() for _ in range(count)], state()
    # Exactly representable, so that sums in float32 and float64 are the same numbers.
    states = [{k: (v * 8).round() / 8 for k, v in s.items()} for s in states]
    evaluate = closeness(target)
    if ordered:
        order = torch.randperm(count, generator=generator).tolist()
    else:
        order = sorted(range(count), key=lambda i: evaluate(states[i]), reverse=True)
    members, best = brute_force(states, evaluate, order)
    soup = greedy_soup(Pool.open(states), evaluate, order if ordered else None)
    assert soup.members == members
    assert soup.score == pytest.approx(best, abs=2e-3)
    assert [trial.model for trial in soup.log] == order
    assert soup.weights == [1 / len(members) if i in members else 0.0 for i in range(count)]
    assert [trial.model for trial in soup.log if trial.accepted] == members


def test_equal_scores_are_accepted():
    pool = Pool.open([{"a": torch.tensor([float(i)])} for i in range(3)])
    soup = greedy_soup(pool, lambda state: 1.0)
    assert soup.members == [0, 1, 2]
    assert pool.average(soup.weights)["a"].item() == pytest.approx(1.0)


def test_nothing_drifts():
    """A rejected candidate of huge values leaves no trace in the sum."""
    values = [1.0, 1e30, 2.0, 3.0]
    pool = Pool.open([{"a": torch.tensor([v])} for v in values])
    seen = []
    soup = greedy_soup(pool, lambda s: seen.append(s["a"].item()) or (s["a"].item() < 100), range(4))
    assert soup.members == [0, 2, 3]
    assert seen == pytest.approx([1.0, 5e29, 1.5, 2.0])


@pytest.mark.parametrize(("order", "reads"), [([3, 1, 0, 2], 4), (None, 8)])
def test_reads_each_row_once(monkeypatch, order, reads):
    counted = []
    summands = Pool.summands
    monkeypatch.setattr(Pool, "summands", lambda self, index: counted.append(index) or summands(self, index))
    pool = Pool.open([{"a": torch.tensor([float(i)])} for i in range(4)])
    greedy_soup(pool, lambda state: state["a"].item() * 0, order)
    assert len(counted) == reads


def test_scores_that_are_no_numbers():
    pool = Pool.open([{"a": torch.tensor([v])} for v in (float("nan"), 1.0, 2.0)])
    soup = greedy_soup(pool, lambda state: state["a"].item())
    assert soup.members == [2]
    assert [trial.score for trial in soup.log] == [2.0, 1.5, -math.inf]
    with pytest.raises(InputError, match="no model has a score"):
        greedy_soup(pool, lambda state: float("nan"))


def test_ranking_is_logged():
    pool = Pool.open([{"a": torch.tensor([v])} for v in (1.0, 3.0, 2.0)])
    soup = greedy_soup(pool, lambda state: state["a"].item())
    assert [(t.model, t.alone) for t in soup.log] == [(1, 3.0), (2, 2.0), (0, 1.0)]
    assert greedy_soup(pool, lambda state: 0.0, [2]).log[0].alone is None


def test_averaged_buffers():
    """The state that is evaluated is the one that the pool's average gives."""

    def state(value):
        return {
            "a": torch.full((4,), value),
            "bn.running_mean": torch.full((2,), value),
            "bn.num_batches_tracked": torch.tensor(int(value)),
        }

    pool = Pool.open([state(1.0), state(3.0), state(8.0)], buffers="average")
    seen = []
    soup = greedy_soup(pool, lambda s: seen.append({k: v.clone() for k, v in s.items()}) or 0.0, [0, 1, 2])
    expected = ratfast.average([state(1.0), state(3.0), state(8.0)], soup.weights, buffers="average")
    torch.testing.assert_close(seen[-1], expected)
    torch.testing.assert_close(seen[1]["bn.num_batches_tracked"], torch.tensor(2))


@pytest.mark.parametrize("order", [[0, 0], [2], [-1], []])
def test_wrong_order(order):
    pool = Pool.open([{"a": torch.zeros(1)}] * 2)
    with pytest.raises(InputError, match="different numbers from 0 to 1"):
        greedy_soup(pool, lambda state: 0.0, order)
