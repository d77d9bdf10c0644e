"""Accuracies, bootstraps and curves against small cases by hand and slow, plain computations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ratfast import InputError
from ratfast.analysis.curves import curve, even_positions, path_weights
from ratfast.analysis.scores import accuracies, bootstrap, domain_shares

outcomes = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12))


def test_domains_count_the_same_whatever_their_size():
    correct = np.array([[True, True, False, False, False, False]])  # domains of 2 and 4 images
    assert accuracies(correct).tolist() == [pytest.approx(2 / 6)]
    assert accuracies(correct, domain_shares([2, 4])).tolist() == [0.5]
    assert domain_shares([2, 4]).sum() == pytest.approx(1)


def test_the_bootstrap_has_the_standard_error_of_a_binomial():
    correct = np.random.default_rng(0).random((1, 400)) < 0.7
    drawn = bootstrap(correct, draws=2000, seed=1)[:, 0]
    p = correct.mean()
    assert drawn.mean() == pytest.approx(p, abs=0.002)
    assert drawn.std() == pytest.approx(np.sqrt(p * (1 - p) / 400), rel=0.06)
    np.testing.assert_array_equal(drawn, bootstrap(correct, draws=2000, seed=1)[:, 0])


def test_the_bootstrap_draws_the_same_images_for_all_networks():
    correct = np.random.default_rng(0).random((1, 50)) < 0.5
    drawn = bootstrap(np.concatenate([correct, ~correct, correct]), draws=50)
    np.testing.assert_allclose(drawn[:, 0] + drawn[:, 1], 1)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 2])


def test_path_weights():
    np.testing.assert_allclose(path_weights(2, [0, 0.25, 1]), [[1, 0], [0.75, 0.25], [0, 1]])
    np.testing.assert_allclose(path_weights(3, [0, 0.5, 1]), [[0.5, 0.5, 0], [0.25, 0.25, 0.5], [0, 0, 1]])


@given(st.integers(2, 6), st.integers(2, 9))
def test_path_weights_sum_to_one_and_rise_for_the_last(count, points):
    weights = path_weights(count, even_positions(points))
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (np.diff(weights[:, -1]) > 0).all() and weights[-1, -1] == 1 and (weights[-1, :-1] == 0).all()


def test_a_curve_by_hand():
    # 4 images; accuracies 1, 1/4, 1/2: the line at the middle is 3/4.
    correct = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
    found = curve(correct, [0, 0.5, 1])
    np.testing.assert_allclose(found.accuracies, [1, 0.25, 0.5])
    np.testing.assert_allclose(found.drops, [0, 0.5, 0])
    assert found.barrier == 0.5 and found.gain == 0 and found.images == 4
    above = curve(correct[[1, 0, 2]], [0, 0.5, 1])
    assert above.barrier == 0 and above.gain == pytest.approx(1 - 0.375) and above.connected


@given(outcomes, st.booleans())
def test_a_curve_between_a_network_and_itself_is_flat(correct, weighted):
    shares = np.random.default_rng(0).dirichlet(np.ones(correct.shape[1])) if weighted else None
    found = curve(np.repeat(correct[:1], 5, axis=0), even_positions(5), shares, draws=20)
    assert found.barrier == found.barrier_low == found.barrier_high == found.gain == 0
    assert found.connected and (found.drop_low == 0).all() and (found.drop_high == 0).all()
    assert len(set(found.accuracies.tolist())) == 1


@given(outcomes)
def test_curves_agree_with_loops(correct):
    positions = even_positions(len(correct))
    found = curve(correct, positions, draws=10)
    ends = correct[0].mean(), correct[-1].mean()
    drops = [
        (1 - at) * ends[0] + at * ends[1] - row.mean() for at, row in zip(positions, correct, strict=True)
    ]
    np.testing.assert_allclose(found.drops, drops, atol=1e-12)
    assert found.barrier == pytest.approx(max(0, *drops), abs=1e-12)
    backwards = curve(correct[::-1], positions, draws=10)
    assert backwards.barrier == pytest.approx(found.barrier) and backwards.gain == pytest.approx(found.gain)


def test_intervals_cover_and_decide():
    random = np.random.default_rng(0)
    ends = random.random(500) < 0.9
    middle = ends & (random.random(500) < 0.6)
    broken = curve(np.stack([ends, middle, ends]), [0, 0.5, 1])
    assert not broken.connected
    assert broken.barrier_low < broken.barrier < broken.barrier_high
    assert (broken.low <= broken.accuracies).all() and (broken.accuracies <= broken.high).all()
    one_image = ends.copy()
    one_image[np.flatnonzero(ends)[0]] = False
    assert curve(np.stack([ends, one_image, ends]), [0, 0.5, 1]).connected  # one image may be chance


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: even_positions(1), "at least its 2 ends"),
        (lambda: path_weights(1, [0, 1]), "at least two"),
        (lambda: curve(np.ones((3, 4), bool), [0, 1]), "2 positions were given for 3"),
        (lambda: curve(np.ones((3, 4), bool), [0, 0.7, 0.9]), "rise from 0 to 1"),
        (lambda: curve(np.ones((3, 4), bool), [0, 0, 1]), "rise from 0 to 1"),
        (lambda: curve(np.ones((2, 0), bool), [0, 1]), "with an image"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
