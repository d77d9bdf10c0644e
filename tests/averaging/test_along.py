"""Averages kept while a model trains, against the same averages of all its states in float64."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ratfast
from ratfast import InputError, checkpoints
from ratfast.averaging import along_rows, trajectory
from ratfast.averaging.along import EMA, LAWA, SWA, SWAD, MovingAverage


def run(count, dtype=torch.float32, seed=0):
    """The states of a model that wanders, as state dicts of their own."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 3)).to(dtype)
    states = []
    for step in range(count):
        with torch.no_grad():
            for tensor in [*model.parameters(), model[1].running_mean]:
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(dtype))
            model[1].num_batches_tracked.fill_(step)
        states.append(copy.deepcopy(model))
    return states


def expected(states, weights, name):
    values = [state.state_dict()[name].double() for state in states]
    return sum(w * value for w, value in zip(weights, values, strict=True))


def check(average, states, weights, policy="latest"):
    last = max(n for n, w in enumerate(weights) if w)
    first = states[0].state_dict()
    assert list(average) == list(first)
    for name, value in average.items():
        assert value.dtype == first[name].dtype and value.shape == first[name].shape
        if name.endswith("tracked") or (policy == "latest" and "running" in name):
            assert torch.equal(value, states[last].state_dict()[name])
        else:
            eps = torch.finfo(value.dtype).eps
            torch.testing.assert_close(
                value.double(), expected(states, weights, name), rtol=2 * eps, atol=20 * eps
            )


STEPS = [5, 10, 15, 20, 25, 30, 35]
RULES = {
    "ema": (lambda **o: EMA(0.8, **o), trajectory.ema_weights(7, 0.8)),
    "ema with warm-up": (
        lambda **o: EMA(0.99, warmup=True, **o),
        trajectory.ema_weights(7, 0.99, warmup=True),
    ),
    "swa": (lambda **o: SWA(10, 10, **o), trajectory.swa_weights(STEPS, 10, 10)),
    "moving average": (lambda **o: MovingAverage(12, **o), trajectory.moving_average_weights(STEPS, 12)),
    "lawa": (lambda **o: LAWA(3, **o), trajectory.lawa_weights(7, 3)),
}


@pytest.mark.parametrize("policy", ["latest", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_same_as_of_all_states(rule, dtype, policy, device):
    make, weights = RULES[rule]
    states = run(7, dtype)
    average = make(buffers=policy)
    for step, state in zip(STEPS, states, strict=True):
        average.update(copy.deepcopy(state).to(device), step=step)
    result = average.average()
    assert all(value.device.type == device.type for value in result.values())
    check({name: value.cpu() for name, value in result.items()}, states, weights, policy)
    # The same weights over the list, as for files.
    if policy == "latest" and dtype == torch.float32:
        listed = ratfast.average(states, weights, buffers="keep")
        torch.testing.assert_close(result["0.weight"].cpu(), listed["0.weight"])


def test_state_dicts_memory_formats_and_later_changes():
    states = run(3)
    before = copy.deepcopy(states)
    average = SWA()
    average.update(states[0].state_dict())
    average.update(states[1].to(memory_format=torch.channels_last))
    average.update(states[2])
    with torch.no_grad():
        states[2][2].weight.zero_()  # the average keeps nothing of the model's memory
        states[2][1].running_mean.zero_()
    result = average.average()
    check(result, before, [1 / 3] * 3)
    result["0.weight"].zero_()
    check(average.average(), before, [1 / 3] * 3)
    assert average.span == (1, 3, 3)


def test_slow_averages_in_low_precision_move():
    """In bfloat16 itself, 1 + 0.001 * (2 - 1) is 1."""
    average = EMA(0.999)
    for value in [1.0] + [2.0] * 700:
        average.update({"a": torch.full((4,), value, dtype=torch.bfloat16)})
    assert average.average()["a"].float()[0].item() == pytest.approx(2 - 0.999**700, rel=2**-8)


def test_lawa_takes_every_so_many():
    average = LAWA(2, every=2)
    for value in range(1, 8):
        average.update({"a": torch.tensor([float(value)])}, step=10 * value)
    assert average.average()["a"].item() == 5.0  # of the updates 4 and 6
    assert average.span == (40, 60, 2)


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3)), min_size=1, max_size=14),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.2, 1.3, 2.0]),
)
def test_swad(evaluations, n_start, n_end, tolerance):
    """Segments of one to three models; the mean over all models of the segments that the rule names."""
    average = SWAD(n_start, n_end, tolerance)
    step, segments, losses = 0, [], []
    for loss, length in evaluations:
        segments.append([])
        losses.append(float(loss))
        for k in range(length):
            step += 1
            segments[-1].append(float(step * step))
            model = {"a": torch.tensor([float(step * step)], dtype=torch.float64)}
            average.update(model, val_loss=float(loss) if k == length - 1 else None)
        first, last = trajectory.swad_range(losses, n_start=n_start, n_end=n_end, tolerance=tolerance)
        taken = [value for segment in segments[first : last + 1] for value in segment]
        assert average.average()["a"].item() == pytest.approx(sum(taken) / len(taken), rel=1e-12)
        assert average.span == (math.isqrt(int(taken[0])), math.isqrt(int(taken[-1])), len(taken))
    if average.ended:
        assert last < len(losses) - 1


def test_swad_ends():
    average = SWAD(2, 2, 1.0)
    for value, loss in enumerate([3.0, 1.0, 1.0, 5.0, 5.0, 0.5, 0.5]):
        average.update({"a": torch.tensor([float(value)])}, val_loss=loss)
    assert average.ended and average.threshold == 1.0
    assert average.average()["a"].item() == 1.5
    fresh = SWAD()
    fresh.update({"a": torch.ones(1)})
    with pytest.raises(InputError, match="nothing has entered the average after 1 updates"):
        fresh.average()


def test_wrong_input():
    average = EMA(0.5)
    with pytest.raises(InputError, match="nothing has entered"):
        average.average()
    average.update({"a": torch.ones(2)})
    with pytest.raises(InputError, match="a has shape"):
        average.update({"a": torch.ones(3)})
    with pytest.raises(InputError, match="b is not expected"):
        average.update({"a": torch.ones(2), "b": torch.ones(2)})
    with pytest.raises(InputError, match="validation loss of update 2 is nan"):
        average.update({"a": torch.ones(2)}, val_loss=math.nan)
    for make in (
        lambda: EMA(2.0),
        lambda: LAWA(0),
        lambda: SWA(0, 0),
        lambda: SWAD(0),
        lambda: EMA(buffers="x"),
    ):
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize(
    ("average", "rows"),
    [(EMA(0.9), 1), (SWA(), 1), (MovingAverage(3), 1), (LAWA(3), 3), (SWAD(2, 3), 3)],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_one_pass_over_the_model_and_few_rows(monkeypatch, average, rows):
    """SWAD merges two rows besides, at evaluations: a pass over rows, not over the model."""
    made, passes = [], []
    new_row, mix_ = average._new_row, along_rows.ops.mix_
    monkeypatch.setattr(average, "_new_row", lambda: made.append(new_row()) or made[-1])
    model = nn.Linear(3, 2)

    def counted(outputs, sources, weights):
        memory = {tensor.data_ptr() for tensor in model.parameters()}
        passes.append(any(tensor.data_ptr() in memory for tensors in sources for tensor in tensors))
        mix_(outputs, sources, weights)

    monkeypatch.setattr(along_rows.ops, "mix_", counted)
    for step in range(12):
        before = sum(passes)
        average.update(model, val_loss=1.0 + step % 3 if step % 2 else None)
        assert sum(passes) - before <= 1
    assert len({id(row) for row in average._rows()}) <= rows
    if not isinstance(average, SWAD):
        assert len(made) == rows and all(passes)


@pytest.mark.parametrize("make", [lambda: EMA(0.5), lambda: LAWA(2), lambda: SWAD(2, 2)])
def test_copies_and_stored_averages_go_on(make, tmp_path):
    """A run that is interrupted continues with the average it had."""
    average = make()
    losses = [3.0, 1.0, 2.0, 1.0, 5.0, 5.0]
    models = [{"a": torch.tensor([float(n)]), "b": torch.full((2,), n)} for n in range(6)]
    for model, loss in zip(models[:3], losses[:3], strict=True):
        average.update(model, val_loss=loss)
    torch.save(average, tmp_path / "average.pt")
    others = [copy.deepcopy(average), torch.load(tmp_path / "average.pt", weights_only=False)]
    for each in (average, *others):
        for model, loss in zip(models[3:], losses[3:], strict=True):
            each.update(model, val_loss=loss)
    for other in others:
        torch.testing.assert_close(other.average(), average.average(), rtol=0, atol=0)
        assert other.span == average.span


LOSSES = [None, 3.0, None, 2.0, 2.5, None, 1.5, 1.9, 1.4, 4.0, None, 4.5, 5.0]


@pytest.mark.parametrize("stop", range(len(LOSSES) + 1))
@pytest.mark.parametrize(
    "make",
    [
        lambda: EMA(0.8, warmup=True),
        lambda: SWA(2, 3),
        lambda: MovingAverage(4),
        lambda: LAWA(3, 2),
        lambda: SWAD(2, 3, 1.2),
    ],
    ids=["ema", "swa", "moving average", "lawa", "swad"],
)
def test_a_restored_average_goes_on_as_if_nothing_had_been(make, stop, tmp_path):
    states = run(len(LOSSES))
    whole, before, after = make(), make(), make()

    def update(average, steps):
        for step in steps:
            average.update(states[step], step=step, val_loss=LOSSES[step])

    update(whole, range(len(LOSSES)))
    update(before, range(stop))
    values, tensors = before.state()
    if tensors:
        checkpoints.save(tensors, tmp_path / "state")
        tensors = checkpoints.load(tmp_path / "state")
    after.restore(states[0], json.loads(json.dumps(values)), tensors)
    update(after, range(stop, len(LOSSES)))
    assert after.span == whole.span and after.updates == whole.updates
    for name, value in whole.average().items():
        assert torch.equal(after.average()[name], value), name
