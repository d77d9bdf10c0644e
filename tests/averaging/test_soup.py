"""Greedy soups against the same selection done by averaging from scratch for every candidate."""

import math
import operator
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ratfast
from ratfast import InputError, Pool, greedy_soup, ops
from ratfast.averaging import growing
from ratfast.averaging.soup import dagger
from ratfast.checkpoints import save


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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=16))
@example([True, False] * 8)
@example([True] * 16)
def test_every_state_is_the_average(verdicts):
    """Whatever is accepted in whatever order; refused candidates are infinite, and a trial reads a few rows only."""
    wanted = [True, *verdicts]
    values = [float(2**index) if accepted else math.inf for index, accepted in enumerate(wanted)]
    pool = Pool.open([{"a": torch.full((70,), value), "b": torch.tensor([value])} for value in values])
    seen, reads = [], []
    mix = ops.mix_

    def counting(outputs, sources, weights):
        reads.append(len(sources))
        mix(outputs, sources, weights)

    with (
        mock.patch.object(ops, "mix_", counting),
        mock.patch.object(growing, "_wide", side_effect=growing._wide) as new_memory,
    ):
        soup = greedy_soup(
            pool,
            lambda s: seen.append(s["a"].tolist() + s["b"].tolist()) or len(seen),
            range(len(wanted)),
            accept=lambda new, old: new > old and wanted[len(seen) - 1],
        )
    assert soup.members == [index for index, accepted in enumerate(wanted) if accepted]
    for tried, state in enumerate(seen):
        chosen = [i for i in range(tried) if wanted[i]] + [tried]
        assert state == pytest.approx([sum(values[i] for i in chosen) / len(chosen)] * 71, rel=1e-6)
    assert sum(reads) <= 4 * len(wanted) and max(reads, default=0) <= 6
    assert new_memory.call_count <= 1
    result = soup.average()
    torch.testing.assert_close(result, pool.average(soup.weights), rtol=0, atol=0)
    assert soup.average()["a"].data_ptr() != result["a"].data_ptr()


def test_average_after_inference_mode():
    pool = Pool.open([{"a": torch.tensor([value])} for value in (1.0, 2.0)])
    with torch.inference_mode():
        soup = greedy_soup(pool, lambda state: 0.0)
    assert soup.average()["a"].add_(1).item() == 2.5


@pytest.mark.parametrize("score", [lambda state: 0.0, lambda state: -state["a"].item()])
@pytest.mark.parametrize(
    ("ranking", "reads", "evaluations"),
    [({"order": [3, 1, 0, 2]}, 4, 4), ({"scores": [0.1, 0.4, 0.3, 0.2]}, 4, 4), ({}, 4, 7)],
)
def test_reads_each_row_once(monkeypatch, ranking, reads, evaluations, score):
    """Whether candidates stay or not; for ranking by evaluation they are handed over where they lie."""
    counted, called = [], []
    summands = Pool.summands
    monkeypatch.setattr(Pool, "summands", lambda self, index: counted.append(index) or summands(self, index))
    pool = Pool.open([{"a": torch.tensor([float(i)])} for i in range(4)])
    greedy_soup(pool, lambda state: called.append(0) or score(state), **ranking)
    assert (len(counted), len(called)) == (reads, evaluations)


def test_models_alone_are_the_pools_own(tmp_path):
    """Neither copied nor to be written to; buffers are those that the pool keeps."""
    states = [
        {"a": torch.full((3,), float(i)), "n.running_mean": torch.full((2,), float(i))} for i in range(3)
    ]
    for i, state in enumerate(states):
        save(state, tmp_path / f"{i}.safetensors")
    for models in (states, sorted(tmp_path.glob("*.safetensors"))):
        with pytest.warns(UserWarning, match="keeps the batch-norm statistics"):
            pool = Pool.open(models, buffers="keep")
        seen = []
        greedy_soup(
            pool, lambda s, seen=seen: seen.append({k: v.clone() for k, v in s.items()}) or s["a"][0].item()
        )
        assert [s["a"].tolist() for s in seen[:3]] == [[i] * 3 for i in (0.0, 1.0, 2.0)]
        assert all(s["n.running_mean"].tolist() == [0, 0] for s in seen)
        with pytest.raises(InputError, match="wrote into the tensors of"):
            greedy_soup(pool, lambda s: s["a"].add_(1).sum().item())


def test_ranking_by_stored_scores():
    pool = Pool.open([{"a": torch.tensor([float(i)])} for i in range(4)])
    soup = greedy_soup(pool, lambda state: 0.0, scores=[0.5, 0.7, math.nan, 0.7])
    assert [trial.model for trial in soup.log] == [1, 3, 0, 2]
    assert [trial.alone for trial in soup.log[:3]] == [0.7, 0.7, 0.5]
    with pytest.raises(InputError, match="3 scores were given for 4 models"):
        greedy_soup(pool, lambda state: 0.0, scores=[1, 2, 3])
    with pytest.raises(InputError, match="both given"):
        greedy_soup(pool, lambda state: 0.0, [0], scores=[1, 2, 3, 4])


def test_acceptance_rule_and_log():
    """model-soups asks for an improvement, Model Ratatouille takes equal scores."""
    pool = Pool.open([{"a": torch.tensor([float(i)])} for i in range(3)])
    soup = greedy_soup(pool, lambda state: 0.25, range(3), accept=operator.gt)
    assert soup.members == [0]
    assert [(t.score, t.before, t.accepted) for t in soup.log] == [
        (0.25, None, True),
        (0.25, 0.25, False),
        (0.25, 0.25, False),
    ]
    assert soup.log[1].reason == "model 2 was refused: 0.25 with it, 0.25 without"
    assert soup.log[0].reason == "model 1 was accepted: it scores 0.25 alone"
    margin = greedy_soup(pool, lambda s: s["a"].item(), range(3), accept=lambda new, old: new > old + 0.5)
    assert margin.members == [0, 2]  # 0, then 0.5, then 1


def test_saved_with_its_log(tmp_path):
    files = []
    for value in (1.0, 5.0, 2.0):
        files.append(tmp_path / f"{value}.safetensors")
        ratfast.checkpoints.save({"a": torch.tensor([value])}, files[-1])
    pool = Pool.open(files)
    soup = greedy_soup(pool, lambda s: -abs(s["a"].item() - 1.5), scores=[3, 2, 1])
    soup.save(tmp_path / "soup.safetensors")
    assert ratfast.checkpoints.load(tmp_path / "soup.safetensors")["a"].tolist() == [1.5]
    note = ratfast.checkpoints.read_metadata(tmp_path / "soup.safetensors")
    assert note["method"] == "greedy" and note["weights"] == [0.5, 0.0, 0.5]
    assert [entry["file"] for entry in note["inputs"]] == [str(path) for path in files]
    assert note["inputs"][1]["sha256"] == ratfast.checkpoints.sha256(files[1])
    assert note["selection"]["members"] == [str(files[0]), str(files[2])]
    assert [entry["accepted"] for entry in note["selection"]["log"]] == [True, False, True]
    assert note["selection"]["log"][1]["before"] == -0.5


def test_dagger():
    trials = [[{"a": torch.tensor([value])} for value in trial] for trial in ([1.0, 2.0], [6.0, 3.0, 8.0])]
    assert dagger(trials)["a"].item() == 4.0
    with pytest.raises(InputError, match="no runs in any trial"):
        dagger([[], []])


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
