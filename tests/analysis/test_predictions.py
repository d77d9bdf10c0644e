"""Networks trained on real digits, seconds long: what is known of curves and averages must come out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from ratfast import InputError, Pool
from ratfast.analysis import experiments
from ratfast.analysis.networks import Networks
from ratfast.analysis.predictions import ImageSet, Predictor
from ratfast.models.classifier import Classifier, Featurizer
from ratfast.models.registry import Normalisation
from ratfast.train import evaluation


def network(seed: int) -> Classifier:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
    return Classifier(
        Featurizer(body, 32),
        10,
        backbone="digits",
        normalisation=Normalisation((0.5,) * 3, (0.5,) * 3),
        image_size=8,
    )


def digits(chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    images = torch.from_numpy(found.images[chosen] * 15).to(torch.uint8)
    return images[:, None].repeat(1, 3, 1, 1), torch.from_numpy(found.target[chosen]).long()


def trained(model: Classifier, seed: int, steps: int, lr: float = 3e-3) -> Classifier:
    images, labels = digits(slice(0, 1000))
    inputs = evaluation.normalised(images, model)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        batch = torch.randint(0, 1000, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def states() -> list[dict[str, torch.Tensor]]:
    """Two random initialisations trained apart, and two fine-tunings of the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that threads would only wait for each other
    first, second = trained(network(0), 0, 250), trained(network(1), 1, 250)
    found = [first, second]
    for seed in (2, 3):
        tuned = network(0)
        tuned.load_state_dict(first.state_dict())
        found.append(trained(tuned, seed, 60, lr=5e-4))
    torch.set_num_threads(threads)
    return [{name: value.clone() for name, value in model.state_dict().items()} for model in found]


def opened(states: Sequence[dict[str, torch.Tensor]], **options) -> Networks:
    images, labels = digits(slice(1000, None))
    parts = ((images[:300], labels[:300]), (images[300:400], labels[300:400]))
    sets = {"two domains": ImageSet(parts), "one": ImageSet(((images[400:], labels[400:]),))}
    names = tuple("abcdef"[: len(states)])
    predictor = Predictor(Pool.open(states), network(9), sets, **options)
    sources = tuple("xyxxxx"[: len(states)])
    return Networks(names, sources, predictor, "two domains", "one")


@pytest.fixture
def networks(states) -> Networks:
    return opened(states)


def test_members_are_what_plain_forward_passes_predict(networks, states):
    images, labels = digits(slice(1000, None))
    for index, state in enumerate(states):
        model = network(5)
        model.load_state_dict(state)
        with torch.no_grad():
            features = model.features(evaluation.normalised(images[400:], model))
            logits = model.classifier(features)
        found = networks.predictor.members["one"]
        np.testing.assert_array_equal(found.predictions[index], logits.argmax(1).numpy())
        np.testing.assert_allclose(found.probabilities[index], logits.softmax(1).numpy(), atol=1e-6)
        np.testing.assert_allclose(found.features[index], features.numpy(), atol=1e-5)
    np.testing.assert_array_equal(networks.predictor.sets["one"].labels, labels[400:].numpy())
    assert networks.predictor.sets["two domains"].shares[[0, -1]] == pytest.approx([1 / 600, 1 / 200])


def test_mixtures_are_what_the_mixed_weights_predict(networks, states):
    weights = np.array([[0.2, 0, 0.3, 0.5], [0, 0, 2, -1]])
    found = networks.predictor.predictions(weights)["one"]
    images, _ = digits(slice(1400, None))
    for row, predictions in zip(weights, found, strict=True):
        model = network(5)
        mixed = {
            name: sum(w * state[name].double() for w, state in zip(row, states, strict=True)).float()
            for name in states[0]
        }
        model.load_state_dict(mixed)
        with torch.no_grad():
            logits = model(evaluation.normalised(images, model))
        np.testing.assert_array_equal(predictions, logits.argmax(1).numpy())


def test_the_ends_of_a_curve_are_the_members(networks):
    found = experiments.interpolation(networks, [1, 0], points=3, draws=10)
    assert found.networks == ("b", "a")
    predictor = networks.predictor
    for name, curve in found.curves.items():
        images, own = predictor.sets[name], predictor.members[name].predictions
        right = own == images.labels
        if images.shares is None:
            expected = right.mean(1)
        else:  # each domain counts the same
            expected = (right[:, :300].mean(1) + right[:, 300:].mean(1)) / 2
        np.testing.assert_allclose(curve.accuracies[[0, -1]], expected[[1, 0]])


def test_a_curve_between_a_network_and_itself_is_flat(networks, states):
    for found in (
        experiments.interpolation(networks, [0, 0], points=4, draws=20),
        experiments.interpolation(opened([states[0]] * 3), points=4, draws=20),
    ):
        for curve in found.curves.values():
            assert curve.barrier == curve.gain == 0 and curve.connected
            assert np.ptp(curve.accuracies) == 0


def test_random_initialisations_show_a_barrier_and_fine_tunings_of_one_do_not(networks):
    apart = experiments.interpolation(networks, [0, 1], draws=200).curves["one"]
    assert apart.accuracies[[0, -1]].min() > 0.85  # both have learnt it
    assert apart.barrier_low > 0.1 and not apart.connected
    together = experiments.interpolation(networks, [2, 3], draws=200).curves["one"]
    assert together.barrier < 0.02 and together.connected


def test_networks_are_evaluated_once_and_soups_mixed_in_one_pass(states, monkeypatch):
    networks = opened(states)
    predictor = networks.predictor
    mixed, loaded = [], []
    mix, load = predictor.pool.mix, predictor._model.load_state_dict
    monkeypatch.setattr(predictor.pool, "mix", lambda W: mixed.append(len(W)) or mix(W))
    monkeypatch.setattr(
        predictor._model, "load_state_dict", lambda *a, **k: loaded.append(1) or load(*a, **k)
    )
    experiments.interpolation(networks, [0, 2], points=7, draws=5)
    assert mixed == [5] and len(loaded) == 4 + 5  # the ends are members
    experiments.pairs(networks)
    experiments.interpolation(networks, [0, 2], points=7, draws=5)
    experiments.subsets_by_size(networks, [1], draws=4)
    assert mixed == [5] and len(loaded) == 9
    subsets = experiments.subsets_by_size(networks, draws=20)
    experiments.domains(networks, subsets)
    assert mixed == [5, 6 + 4 + 1 - 1] and len(loaded) == 9 + 10  # of networks 0 and 2 the mean is known


def test_groups_bounded_by_memory_change_nothing(networks, states):
    weights = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    calls = []
    one_by_one = opened(states, group_bytes=1, progress=lambda done, total: calls.append((done, total)))
    for name, expected in networks.predictor.predictions(weights).items():
        np.testing.assert_array_equal(one_by_one.predictor.predictions(weights)[name], expected)
    assert calls == [(n, 4) for n in range(1, 5)] + [(n, 5) for n in range(1, 6)]


def test_diversity_and_similarity(networks):
    found = experiments.pairs(networks)
    for name in ("one", "two domains"):
        assert (np.diag(found.diversity[name].ratio_error) == 0).all()
        assert (np.diag(found.diversity[name].q) == 1).all()
        # Fine-tunings of one network are more alike than networks trained apart.
        assert found.diversity[name].disagreement[0, 1] > found.diversity[name].disagreement[2, 3]
        for cka in (found.linear_cka[name], found.rbf_cka[name]):
            assert cka[0, 1] < cka[2, 3] < 1


def test_subsets(networks, states):
    found = experiments.subsets_by_size(networks, draws=100)
    assert [len(r.members) for r in found.results["one"]] == [1] * 4 + [2] * 6 + [3] * 4 + [4]
    flat = np.stack([torch.cat([v.flatten() for v in state.values()]).double().numpy() for state in states])
    predictor = networks.predictor
    labels = predictor.sets["one"].labels
    for result in found.results["one"]:
        members = list(result.members)
        center = flat[members].mean(0)
        assert result.locality == pytest.approx(((flat[members] - center) ** 2).sum(1).max(), rel=1e-5)
        together = predictor.members["one"].probabilities[members].mean(0, dtype=float).argmax(1)
        assert result.ensemble == pytest.approx((together == labels).mean())
        weights = np.isin(np.arange(4), members) / len(members)
        alone = predictor.predictions(weights)["one"][0]
        assert result.average == pytest.approx((alone == labels).mean())
    assert found.growth()["one"].numbers == (1, 2, 3, 4)
    assert experiments.subsets_by_sources(networks) is None  # "y" has one network only


def test_subsets_by_sources(networks):
    found = experiments.subsets_by_sources(
        dataclasses.replace(networks, sources=("x", "y", "x", "y")), draws=9
    )
    assert [r.members for r in found.results["one"][:2]] in ([(0, 2), (1, 3)], [(1, 3), (0, 2)])
    assert {r.members for r in found.results["one"][2:]} == {(0, 1), (0, 3), (1, 2), (2, 3)}
    grown = found.growth_by_sources()["one"]
    assert grown.numbers == (1, 2) and [s.draws for s in grown.average] == [2, 4]


def test_domains(networks):
    subsets = experiments.subsets_by_size(networks, [1, 2], draws=100)
    found = experiments.domains(networks, subsets)
    assert found.networks.shape == (4, 2) and found.averages.shape == (6, 2)
    assert found.in_domain == "two domains" and found.line_of_networks.points == 4
    right = networks.predictor.members["one"].predictions == networks.predictor.sets["one"].labels
    np.testing.assert_allclose(found.networks[:, 1], right.mean(1))


def test_wrong_input(networks, states):
    with pytest.raises(InputError, match="numbers from 0 to 3"):
        experiments.interpolation(networks, [0, 4])
    with pytest.raises(InputError, match="at least two"):
        experiments.interpolation(networks, [0])
    with pytest.raises(InputError, match="at least two"):
        experiments.pairs(opened(states[:1]))
    with pytest.raises(InputError, match="at least one in each set"):
        Predictor(Pool.open(states), network(0), {})
    with pytest.raises(InputError, match="2 weights were given for 4 models"):
        networks.predictor.predictions(np.ones((1, 2)))
