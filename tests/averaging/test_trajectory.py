"""Weights along a run against the recurrences and algorithms of the papers, written out."""

import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratfast import InputError
from ratfast.averaging import trajectory

LOSSES = st.lists(st.integers(1, 8).map(float), min_size=1, max_size=14)
SETTINGS = {
    "n_start": st.integers(1, 4),
    "n_end": st.integers(1, 6),
    "tolerance": st.sampled_from([1.0, 1.2, 1.3, 2.0]),
}


def swad_of_the_paper(losses, n_start, n_end, tolerance):
    """Algorithm 1 of arXiv 2102.08604 on 1-based i, every minimum taken anew; (t_s, t_e), or None if no t_s."""
    E = dict(enumerate(losses, 1))
    T = len(losses)
    starts = [
        i - n_start + 1
        for i in range(n_start, T + 1)
        if E[i - n_start + 1] == min(E[i - k] for k in range(n_start))
    ]
    if not starts:
        return None
    t_s = starts[0]
    level = tolerance * sum(E[t_s + k] for k in range(n_start)) / n_start
    for i in range(t_s + n_start, T + 1):
        if min(E[i - k] for k in range(n_end) if i - k >= 1) > level:
            return t_s, i - n_end
    return t_s, T


@given(LOSSES, SETTINGS["n_start"], SETTINGS["n_end"], SETTINGS["tolerance"])
def test_swad(losses, n_start, n_end, tolerance):
    losses = [loss + 0.37 * index / 100 for index, loss in enumerate(losses)] if tolerance == 1.3 else losses
    expected = swad_of_the_paper(losses, n_start, n_end, tolerance)
    first, last = trajectory.swad_range(losses, n_start=n_start, n_end=n_end, tolerance=tolerance)
    if expected is None:
        assert first == last == len(losses) - 1
    else:
        assert (first + 1, last + 1) == expected
    weights = trajectory.swad_weights(losses, n_start=n_start, n_end=n_end, tolerance=tolerance)
    assert weights == [1 / (last - first + 1) if first <= n <= last else 0.0 for n in range(len(losses))]


def swad_as_published(losses, n_converge, n_tolerance, ratio):
    """The rule of the authors' published code, on numbers of evaluations: how often each model is in the average.

    Returns:
        The number of the model at which it converged, or None; how often each is averaged; whether the valley ended.
    """
    converge, smooth, start, level = deque(maxlen=n_converge), deque(maxlen=n_tolerance), None, math.inf
    taken = Counter()
    for number in range(len(losses)):
        converge.append(number)
        smooth.append(number)
        if start is None:
            if len(converge) < n_converge or losses[converge[0]] > min(losses[n] for n in converge):
                continue
            start = converge[0]
            taken[start] += 1
            level = sum(losses[n] for n in converge) / n_converge * (1 + ratio)
            if n_tolerance < n_converge:
                taken.update(list(converge)[1 : 1 + n_converge - n_tolerance])
            elif n_tolerance > n_converge:
                left = list(smooth)[: n_tolerance - n_converge + 1]
                begin = max([at + 1 for at, n in enumerate(left) if losses[n] > level], default=0)
                taken.update(left[begin + 1 :])
        elif smooth[0] >= start:
            if min(losses[n] for n in smooth) > level:
                return start, taken, True
            taken[smooth[0]] += 1
    if start is not None:
        smooth.popleft()
        while smooth and min(losses[n] for n in smooth) <= level:
            taken[smooth.popleft()] += 1
    return start, taken, False


@given(LOSSES, SETTINGS["n_start"], SETTINGS["n_end"], st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_swad_against_the_published_code(losses, n_start, n_end, ratio):
    """Alike but for what the docstring says: to the left of the start, its count, and models above the level at the
    end of a run."""
    start, taken, ended = swad_as_published(losses, n_start, n_end, ratio)
    first, last = trajectory.swad_range(losses, n_start=n_start, n_end=n_end, tolerance=1 + ratio)
    if start is None:
        assert first == last == len(losses) - 1
        return
    assert first == start and taken[start] >= 1
    assert n_end > n_start or (taken[start] == 1 and min(taken) == start)
    right = {number: count for number, count in taken.items() if number > start}
    assert n_end > n_start or set(right.values()) <= {1}
    missing = sorted(set(range(first + 1, last + 1)) - right.keys())
    assert right.keys() <= set(range(first + 1, last + 1))
    if ended:
        assert not missing
    level = (1 + ratio) * sum(losses[start : start + n_start]) / n_start
    assert all(losses[number] > level for number in missing)
    assert missing == list(range(last - len(missing) + 1, last + 1))


def test_swad_counts_the_start_once():
    """The published code (N_s = 3, N_e = 6) would drop the first of the valley and count another twice."""
    losses = [1.30, 1.10, 1.05, 1.00, 1.02, 1.04, 1.03, 1.05, 9, 9, 9, 9, 9, 9, 9]
    assert trajectory.swad_range(losses) == (3, 7)
    assert trajectory.swad_weights(losses) == [0.0] * 3 + [0.2] * 5 + [0.0] * 7


def test_swad_without_a_valley():
    assert trajectory.swad_range([5.0, 4.0, 3.0, 2.0]) == (3, 3)
    assert trajectory.swad_range([1.0, 2.0]) == (1, 1)


@given(st.integers(1, 12), st.floats(0, 1), st.booleans())
def test_ema(count, decay, warmup):
    models = np.eye(count)
    average = models[0]
    for n in range(1, count):
        d = min(decay, 1 - (1 + n) ** (-2 / 3)) if warmup else decay
        average = d * average + (1 - d) * models[n]
    weights = trajectory.ema_weights(count, decay, warmup=warmup)
    np.testing.assert_allclose(weights, average, rtol=1e-12, atol=1e-15)
    assert math.fsum(weights) == pytest.approx(1)


def test_warmup_of_power_one_is_the_mean():
    decays = [trajectory.ema_decay(n, 1.0, warmup=True, power=1.0) for n in range(5)]
    assert decays == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4, 4 / 5])
    assert trajectory.ema_decay(3, 0.9, warmup=True, minimum=0.8) == 0.8


def test_swa_and_moving_average():
    steps = [10, 20, 30, 40, 50]
    assert trajectory.swa_weights(steps, 20, 20) == [0, 0.5, 0, 0.5, 0]
    assert trajectory.swa_weights(steps) == [0.2] * 5
    assert trajectory.moving_average_weights(steps, 31) == [0, 0, 0, 0.5, 0.5]
    with pytest.raises(InputError, match="no checkpoint is of step 60"):
        trajectory.swa_weights(steps, 60)


def test_lawa():
    assert trajectory.lawa_weights(4, 2) == [0, 0, 0.5, 0.5]
    assert trajectory.lawa_weights(2, 5) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trajectory.ema_weights(3, 1.5), "decay is 1.5"),
        (lambda: trajectory.ema_weights(3, math.nan), "decay is nan"),
        (lambda: trajectory.ema_weights(0, 0.5), "no checkpoints"),
        (lambda: trajectory.lawa_weights(3, 0), "k is 0"),
        (lambda: trajectory.swa_weights([1], 0, 0), "every is 0"),
        (lambda: trajectory.swad_range([]), "no checkpoints"),
        (lambda: trajectory.swad_range([1.0, math.nan]), "evaluation 2 is nan"),
        (lambda: trajectory.swad_range([1.0], tolerance=0.3), "tolerance is 0.3"),
        (lambda: trajectory.swad_range([1.0], n_start=0), "n_start is 0"),
        (lambda: trajectory.swad_range([1.0], n_end=0), "n_end is 0"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
