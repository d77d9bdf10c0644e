"""Distances and angles from the Gram matrix against those of the vectors themselves, in float64."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ratfast import InputError, checkpoints
from ratfast.analysis.distances import distances_of_files, geometry


def vectors(states):
    """Each model's parameters as one float64 vector."""
    names = [n for n in states[0] if "running" not in n and states[0][n].is_floating_point()]
    return np.stack([torch.cat([s[n].double().flatten() for n in names]).numpy() for s in states])


def saved(folder, states, kinds=("safetensors",)):
    paths = []
    for index, state in enumerate(states):
        kind = kinds[index % len(kinds)]
        paths.append(folder / f"model{index}.{kind}")
        checkpoints.save(state, paths[-1]) if kind == "safetensors" else torch.save(state, paths[-1])
    return paths


def check(found, X, base):
    reference = X.mean(0) if base is None else X[base]
    tau = X - reference
    lengths = np.linalg.norm(tau, axis=1)
    np.testing.assert_allclose(found.norms, np.linalg.norm(X, axis=1), rtol=1e-12)
    pairs = np.linalg.norm(X[:, None] - X[None], axis=2)
    np.testing.assert_allclose(found.distances, pairs, rtol=1e-8, atol=1e-7 * found.norms.max())
    np.testing.assert_allclose(found.from_reference, lengths, rtol=1e-8, atol=1e-7 * found.norms.max())
    for i in range(len(X)):
        for j in range(len(X)):
            if min(lengths[i], lengths[j]) > 1e-3 * found.norms.max():
                cosine = tau[i] @ tau[j] / (lengths[i] * lengths[j])
                assert found.cosines[i, j] == pytest.approx(cosine, abs=1e-8)
    members = X if base is None else np.delete(X, base, axis=0)
    spread = ((members - members.mean(0)) ** 2).sum(1).max()
    assert found.locality == pytest.approx(spread, rel=1e-8, abs=1e-12 * found.norms.max() ** 2)


@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans(), st.floats(1e-2, 3))
def test_geometry(seed, count, with_base, size):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=30) + size * rng.normal(size=(count, 30))
    base = seed % count if with_base else None
    found = geometry(X @ X.T, X @ X.T, [f"m{n}" for n in range(count)], base)
    check(found, X, base)
    assert found.reference == ("mean" if base is None else f"m{base}")


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 32),
        nn.Linear(32, 10),
    )


def trained(model, seed, steps=25, rate=0.05):
    """A copy fine-tuned on images whose classes have means of their own."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(10, 3, 8, 8, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        labels = torch.randint(10, (32,), generator=generator)
        images = means[labels] + torch.randn(32, 3, 8, 8, generator=generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("kinds", [("safetensors",), ("safetensors", "pth")])
def test_files(tmp_path, kinds):
    """Buffers left out; files of all kinds and types; a base beside the models."""
    torch.manual_seed(1)
    first = network()
    states = [trained(first, seed, steps=3) for seed in range(4)]
    states[3] = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in states[3].items()
    }
    paths = saved(tmp_path, states, kinds)
    check(distances_of_files(paths), vectors(states), None)
    found = distances_of_files(paths[1:], paths[0])
    check(found, vectors([*states[1:], states[0]]), 3)
    assert found.reference == str(paths[0]) == found.names[-1]
    assert found.from_reference[-1] == 0 and (found.cosines[-1] == 0).all()


def test_folders_and_patterns(tmp_path):
    paths = saved(tmp_path, [{"w": torch.full((2, 2), float(n))} for n in range(3)])
    expected = distances_of_files(paths)
    for names in ([tmp_path], [f"{tmp_path}/*"]):
        assert distances_of_files(names).to_dict() == expected.to_dict()


def test_one_pre_training_or_not(tmp_path):
    """Fine-tunings of one initialisation are related, even hard ones; trainings from scratch are not."""
    torch.manual_seed(2)
    first = network()
    tuned = [trained(first, seed) for seed in range(3)]
    apart = [trained(network(), seed) for seed in range(2)]
    (tmp_path / "one").mkdir()
    one = distances_of_files(saved(tmp_path / "one", tuned), None)
    assert one.unrelated == [] and one.warning() is None
    assert one.relative.max() < 0.8
    both = distances_of_files(saved(tmp_path, [*tuned, *apart]))
    assert sorted(both.unrelated) == sorted((i, j) for j in (3, 4) for i in range(j))
    assert "and 6 more pairs" in both.warning() and "not to come from one pre-training" in both.warning()
    # Their raw cosine alone would not tell: the scales of batch norm are near 1 in all.
    matrices = [n for n in tuned[0] if tuned[0][n].dim() >= 2]
    a, b = (torch.cat([s[n].flatten() for n in matrices]) for s in (tuned[0], apart[0]))
    expected = (a - b).norm() / (a.square().sum() + b.square().sum()).sqrt()
    assert both.relative[0, 3] == pytest.approx(expected.item(), rel=1e-5)


def test_equal_models_have_distance_zero(tmp_path):
    state = {"w": torch.randn(300, 1000)}
    found = distances_of_files(saved(tmp_path, [state, state, {"w": state["w"] * 1.5}]))
    assert found.distances[0, 1] == 0
    assert found.distances[0, 2] == pytest.approx(state["w"].double().norm().item() / 2)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights(tmp_path, tied):
    """DomainBed's files hold every network under two names; what is one tensor in all files counts once."""
    states = []
    for _ in range(2):
        weight = torch.randn(3, 4)
        states.append({"network.weight": weight, "featurizer.weight": weight})
    if not tied:
        states[1]["featurizer.weight"] = states[1]["featurizer.weight"].clone()
    paths = [tmp_path / f"{index}.pth" for index in range(2)]
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    found = distances_of_files(paths)
    apart = (states[0]["network.weight"].double() - states[1]["network.weight"].double()).norm().item()
    assert found.distances[0, 1] == pytest.approx(apart if tied else apart * 2**0.5)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([{"a": torch.ones(2)}], "at least two"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], "a has shape"),
        (
            [{"a": torch.ones(2)}, {"a": torch.tensor([1.0, torch.nan])}],
            r"model1\.safetensors has numbers in 'a'",
        ),
        ([{"a": torch.ones(2)}, {"a": torch.ones(2).int()}], r"'a' is int32 in .*model1"),
        ([{"a": torch.ones(2).int()}] * 2, "no parameters"),
    ],
)
def test_wrong_input(tmp_path, states, message):
    with pytest.raises(InputError, match=message):
        distances_of_files(saved(tmp_path, states))


def command(*arguments):
    code = (
        "import sys; from ratfast.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_command(tmp_path):
    torch.manual_seed(0)
    paths = saved(tmp_path, [{"w": torch.randn(40, 30)} for _ in range(3)])
    done = command("analyze", "distances", *paths[:2], "--base", paths[2], "--json")
    assert done.returncode == 0 and done.stderr.endswith("False\n")  # without torch
    report = json.loads(done.stdout)
    assert report["checkpoints"] == [str(path) for path in paths] and report["reference"] == str(paths[2])
    assert len(report["unrelated"]) == 3 and report["warning"] in done.stderr
    text = command("analyze", "distances", *paths)
    assert text.returncode == 0
    assert "cosines of the differences to the mean" in text.stdout and "warning: " in text.stderr
    assert f"{report['norms'][0]:.4g}" in text.stdout
    wrong = command("analyze", "distances", paths[0])
    assert wrong.returncode == 2 and "expected at least two" in wrong.stderr
