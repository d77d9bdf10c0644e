"""Subsets, averages of them, and lines, against counting, numpy and scipy."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from ratfast import InputError
from ratfast.analysis.averages import averaged, comparison, ensemble_predictions, growth
from ratfast.analysis.distances import locality
from ratfast.analysis.lines import fit_line
from ratfast.analysis.plain import plain
from ratfast.analysis.subsets import random_subsets, source_subsets, spread, uniform_weights


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(0, 5))
def test_random_subsets(count, size, draws, seed):
    assume(size <= count)
    found = random_subsets(count, size, draws, seed)
    assert len(found) == len(set(found)) == min(draws, math.comb(count, size))
    assert all(len(set(s)) == size and list(s) == sorted(s) and set(s) <= set(range(count)) for s in found)
    assert found == random_subsets(count, size, draws, seed)


def test_random_subsets_take_every_network_about_as_often():
    counts = np.bincount(np.ravel(random_subsets(12, 4, 300)), minlength=12)
    assert stats.chisquare(counts).pvalue > 0.001
    assert random_subsets(12, 4, 5, seed=0) != random_subsets(12, 4, 5, seed=1)


@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=9), st.integers(1, 3), st.integers(0, 3))
def test_source_subsets(sources, number, seed):
    sizes = {source: sources.count(source) for source in sources}
    assume(number <= len(sizes))
    size = max(min(sizes.values()), number)
    for members in source_subsets(sources, number, draws=6, seed=seed):
        taken = [sum(sources[m] == source for m in members) for source in sizes]
        assert len(set(members)) == size == sum(taken)
        assert sum(count > 0 for count in taken) == number
        assert max(taken) - min(count for count in taken if count) <= 1  # evenly


def test_source_subsets_find_all_there_are():
    found = source_subsets(["a", "a", "b", "b"], 2, 2, draws=100)
    assert set(found) == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert set(source_subsets(["a", "a", "b", "b"], 1, 2, draws=100)) == {(0, 1), (2, 3)}


def test_weights_of_subsets():
    np.testing.assert_array_equal(uniform_weights([(0, 2), (1,)], 3), [[0.5, 0, 0.5], [0, 1, 0]])


def test_spread():
    found = spread([1, 2, 4, 5])
    assert found.mean == 3 and found.std == pytest.approx(np.std([1, 2, 4, 5], ddof=1))
    assert found.standard_error == pytest.approx(stats.sem([1, 2, 4, 5])) and found.draws == 4
    assert spread([2]) == spread([2]) and spread([2]).std is None


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=20))
def test_lines_are_scipys(points):
    x, y = np.array(points).T
    assume(np.ptp(x) > 1e-3 and np.ptp(y) > 1e-3)
    found, expected = fit_line(x, y), stats.linregress(x, y)
    assert found.slope == pytest.approx(expected.slope, rel=1e-6, abs=1e-9)
    assert found.intercept == pytest.approx(expected.intercept, rel=1e-6, abs=1e-6)
    assert found.r == pytest.approx(expected.rvalue, rel=1e-6, abs=1e-6)
    assert found.points == len(points)


def test_lines_that_points_leave_open():
    assert fit_line([0, 1], [0, 1]) is None
    assert fit_line([0.3, 0.3, 0.3], [0, 1, 2]) is None
    flat = fit_line([0, 1, 2], [0.1, 0.1, 0.1])
    assert flat.slope == pytest.approx(0) and flat.r is None


def test_locality_is_the_largest_squared_distance_to_the_mean():
    models = np.random.default_rng(0).normal(size=(5, 40))
    chosen = models[[0, 2, 3]]
    expected = ((chosen - chosen.mean(0)) ** 2).sum(1).max()
    assert locality(models @ models.T, (0, 2, 3)) == pytest.approx(expected)
    assert locality(models @ models.T, (1,)) == 0


@pytest.fixture
def results():
    """Three networks on five images, all their subsets, and averages that are right where the second network is."""
    random = np.random.default_rng(3)
    probabilities = random.dirichlet(np.ones(3), size=(3, 5)).astype(np.float32)
    members, labels = probabilities.argmax(2), np.array([0, 1, 2, 0, 1])
    subsets = [s for size in (1, 2, 3) for s in itertools.combinations(range(3), size)]
    soups = np.stack([members[1]] * len(subsets))
    return averaged(subsets, soups, members, probabilities, labels, range(7)), probabilities, labels


def test_averages_against_loops(results):
    found, probabilities, labels = results
    accuracy = (probabilities.argmax(2) == labels).mean(1)
    for place, result in enumerate(found):
        members = list(result.members)
        together = [probabilities[members, image].astype(float).mean(0).argmax() for image in range(5)]
        assert result.ensemble == pytest.approx((np.array(together) == labels).mean())
        assert result.average == pytest.approx(accuracy[1])
        assert result.members_mean == pytest.approx(accuracy[members].mean())
        assert result.gain == pytest.approx(accuracy[1] - accuracy[members].mean())
        assert result.locality == place
        assert (result.ratio_error is None) == (len(members) == 1) == (result.q is None)
    for result in found[:3]:
        assert result.ensemble == result.members_mean
    np.testing.assert_array_equal(ensemble_predictions(probabilities, (2,)), probabilities[2].argmax(1))


def test_growth_and_comparison(results):
    found, _, _ = results
    grown = growth(found, lambda result: len(result.members))
    assert grown.numbers == (1, 2, 3) and [s.draws for s in grown.average] == [3, 3, 1]
    assert grown.ensemble[1].mean == pytest.approx(np.mean([r.ensemble for r in found[3:6]]))
    compared = comparison(found)
    several = found[3:]
    assert compared.subsets == 4
    assert compared.wins == pytest.approx(
        np.mean([(r.average > r.ensemble) + 0.5 * (r.average == r.ensemble) for r in several])
    )
    expected = stats.linregress([r.ratio_error for r in several], [r.gain for r in several])
    assert compared.gain_on_ratio_error.slope == pytest.approx(expected.slope)
    assert set(compared.gain_by_size) == {2, 3} and compared.gain_by_size[3] is None
    json.dumps(plain([found, grown, compared]), allow_nan=False)
    assert plain(found[0])["members"] == [0] and plain(compared)["gain_by_size"]["3"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_subsets(3, 4, 2), "no 4 of 3"),
        (lambda: random_subsets(3, 0, 2), "no 0 of 3"),
        (lambda: random_subsets(3, 2, 0), "at least 1"),
        (lambda: source_subsets(["a", "b"], 3, draws=2), "no 3 sources"),
        (lambda: source_subsets(["a", "b"], 2, 1, draws=2), "at least as many"),
        (lambda: source_subsets(["a", "b", "b"], 1, 2, draws=2), "the smallest source has 1"),
        (lambda: spread([]), "no numbers"),
        (lambda: fit_line([1, 2], [1]), "as many finite"),
        (lambda: fit_line([1, 2, np.nan], [1, 2, 3]), "finite"),
        (lambda: comparison([]), "two or more"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
