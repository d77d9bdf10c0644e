"""Diversity and similarity against counts by hand, scikit-learn, and the definitions written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics.pairwise import rbf_kernel

from ratfast import InputError
from ratfast.analysis.diversity import diversity
from ratfast.analysis.similarity import linear_cka, rbf_cka

classes = hnp.arrays(np.int64, st.tuples(st.integers(2, 5), st.integers(1, 15)), elements=st.integers(0, 3))


def counts(first, second, labels):
    """Numbers of images by which of the two is right, one by one."""
    found = {"11": 0, "10": 0, "01": 0, "00": 0}
    for a, b, label in zip(first, second, labels, strict=True):
        found[f"{int(a == label)}{int(b == label)}"] += 1
    return found


def test_a_case_by_hand():
    labels = np.zeros(10, int)
    first = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    second = np.array([0, 0, 0, 0, 1, 2, 0, 1, 1, 2])
    assert counts(first, second, labels) == {"11": 4, "10": 2, "01": 1, "00": 3}
    found = diversity(np.stack([first, second]), labels)
    assert found.ratio_error[0, 1] == pytest.approx(3 / 3)
    assert found.q[0, 1] == pytest.approx((4 * 3 - 1 * 2) / (4 * 3 + 1 * 2))
    assert found.disagreement[0, 1] == pytest.approx(0.3)
    assert found.double_fault[0, 1] == pytest.approx(0.3)
    assert found.different_labels[0, 1] == pytest.approx(0.4)  # also the last image, wrong in two ways
    assert found.mean() == pytest.approx(
        {
            "ratio_error": 1,
            "q": 10 / 14,
            "disagreement": 0.3,
            "double_fault": 0.3,
            "different_labels": 0.4,
        }
    )


@given(classes)
def test_the_definitions_where_they_hold(predictions):
    labels = np.zeros(predictions.shape[1], int)
    found = diversity(predictions, labels)
    for i in range(len(predictions)):
        for j in range(len(predictions)):
            n = counts(predictions[i], predictions[j], labels)
            crossed, alike = n["01"] * n["10"], n["11"] * n["00"]
            if n["00"]:
                assert found.ratio_error[i, j] == pytest.approx((n["01"] + n["10"]) / n["00"])
            if crossed + alike:
                assert found.q[i, j] == pytest.approx((alike - crossed) / (alike + crossed))
            assert found.disagreement[i, j] == pytest.approx((n["01"] + n["10"]) / len(labels))
            assert found.double_fault[i, j] == pytest.approx(n["00"] / len(labels))
            assert found.different_labels[i, j] == pytest.approx((predictions[i] != predictions[j]).mean())
    for name in found.MEASURES:
        matrix = getattr(found, name)
        assert np.isfinite(matrix).all() and (matrix == matrix.T).all()
    assert (np.abs(found.q) <= 1 + 1e-12).all()


@given(classes)
def test_a_network_is_not_diverse_from_itself(predictions):
    found = diversity(predictions, np.zeros(predictions.shape[1], int))
    for matrix in (found.ratio_error, found.disagreement, found.different_labels, 1 - found.q):
        assert (np.diag(matrix) == 0).all()
    twin = diversity(np.stack([predictions[0]] * 3), np.zeros(predictions.shape[1], int))
    assert (twin.ratio_error == 0).all() and (twin.q == 1).all()


def test_no_shared_error_is_more_diverse_than_one():
    labels = np.zeros(20, int)

    def ratio(shared):
        first, second = np.zeros(20, int), np.zeros(20, int)
        first[: 4 + shared] = 1
        second[4 : 8 + shared] = 1  # `shared` errors are on images 4 ...
        return diversity(np.stack([first, second]), labels).ratio_error[0, 1]

    # The official code gives 2 * 8 / 20 = 0.8 for none, below the 4 of two shared errors.
    assert ratio(0) == pytest.approx(2 * 8)
    assert ratio(1) == pytest.approx(8)
    assert ratio(0) > ratio(1) > ratio(2) > ratio(4)


def test_q_of_a_network_that_is_always_right_or_wrong_is_that_of_independent_ones():
    labels, mixed = np.zeros(4, int), np.array([0, 1, 0, 1])
    for constant in (np.zeros(4, int), np.ones(4, int)):
        assert diversity(np.stack([constant, mixed]), labels).q[0, 1] == 0


def test_domains_may_count_the_same():
    labels = np.zeros(4, int)
    predictions = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
    shares = np.array([0.5, 1 / 6, 1 / 6, 1 / 6])  # a domain of one image and one of three
    found = diversity(predictions, labels, shares)
    assert found.disagreement[0, 1] == pytest.approx(0.5 + 1 / 6)
    assert found.ratio_error[0, 1] == pytest.approx((0.5 + 1 / 6) / (1 / 6))


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        (np.zeros((2, 3), int), np.zeros(4, int), r"labels \(4,\)"),
        (np.zeros(3, int), np.zeros(3, int), "expected"),
        (np.zeros((2, 0), int), np.zeros(0, int), "with an image"),
    ],
)
def test_wrong_predictions(predictions, labels, message):
    with pytest.raises(InputError, match=message):
        diversity(predictions, labels)


def test_one_network_has_no_mean_diversity():
    with pytest.raises(InputError, match="at least two"):
        diversity(np.zeros((3, 4), int), np.zeros(4, int)).mean((1,))


# Similarity


def hsic(k, ell):
    center = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ center @ ell @ center)


def cka(k, ell):
    return hsic(k, ell) / np.sqrt(hsic(k, k) * hsic(ell, ell))


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    shared = random.normal(size=(30, 4))
    first = shared @ random.normal(size=(4, 7))
    second = np.tanh(shared @ random.normal(size=(4, 5))) + 0.1 * random.normal(size=(30, 5))
    return [first, second, random.normal(size=(30, 6))]


def test_linear_cka_is_its_definition(features):
    found = linear_cka(features)
    expected = [[cka(a @ a.T, b @ b.T) for b in features] for a in features]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    x, y = (f - f.mean(0) for f in features[:2])  # the form over features, equation 4 of the paper
    form = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert found[0, 1] == pytest.approx(form)


def test_rbf_cka_is_its_definition(features):
    kernels = []
    for x in features:
        squares = ((x[:, None] - x[None]) ** 2).sum(-1)
        sigma_squared = 0.5**2 * np.median(squares[np.triu_indices(30, 1)])
        kernels.append(rbf_kernel(x, gamma=1 / (2 * sigma_squared)))
    expected = [[cka(a, b) for b in kernels] for a in kernels]
    np.testing.assert_allclose(rbf_cka(features, 0.5), expected, rtol=1e-9)


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_rotating_and_scaling_changes_nothing(seed, scale):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(12, 5)), random.normal(size=(12, 3))
    rotation, _ = np.linalg.qr(random.normal(size=(5, 5)))
    for measure in (linear_cka, rbf_cka):
        plain = measure([x, y])[0, 1]
        assert measure([scale * x @ rotation + 3, y])[0, 1] == pytest.approx(plain, rel=1e-6)
        assert measure([x, scale * x @ rotation])[0, 1] == pytest.approx(1)
        assert 0 <= plain <= 1


@pytest.mark.parametrize("measure", [linear_cka, rbf_cka])
def test_constant_features_are_like_no_others(measure, features):
    found = measure([features[0], np.full((30, 4), 0.1)])
    np.testing.assert_allclose(found, np.eye(2))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([np.ones((3, 2)), np.ones((4, 2))], "same images"),
        ([np.ones((1, 2))], "at least 2"),
        ([np.ones(3)], "expected"),
        ([], "expected"),
        ([np.array([[1.0, np.nan], [0, 1]])], "not finite"),
    ],
)
def test_wrong_features(features, message):
    for measure in (linear_cka, rbf_cka):
        with pytest.raises(InputError, match=message):
            measure(features)
