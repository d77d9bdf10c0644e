"""The pool against sums in float64 and against `average`."""

import pytest
import torch
from torch import nn

import ratfast
from ratfast import InputError, Pool, checkpoints
from ratfast.averaging.sections import Section, sections
from ratfast.layout import Entry


def network(seed, statistics=0.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Linear(5, 7))
    model[1].running_mean.add_(statistics)
    model[1].num_batches_tracked.add_(int(statistics))
    return model


def parameters(model):
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


@pytest.fixture
def models():
    return [network(seed) for seed in range(5)]


@pytest.fixture
def files(models, tmp_path):
    paths = [tmp_path / f"{index}.safetensors" for index in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        checkpoints.save(model.state_dict(), path)
    return paths


WEIGHTS = [0.5, -0.25, 0.0, 2.0, 0.125]


def assert_average(found, models, weights):
    for name in found:
        states = [model.state_dict()[name].double() for model in models]
        buffer = "running" in name or "num_batches" in name
        expected = states[0] if buffer else sum(s * w for s, w in zip(states, weights, strict=True))
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["modules", "files", "mixed"])
def test_average_and_mix(models, files, kind, device):
    sources = {"modules": models, "files": files, "mixed": [*models[:2], *files[2:]]}[kind]
    pool = Pool.open(sources, device=device)
    assert len(pool) == 5
    assert pool.device.type == device.type
    assert_average(pool.average(), models, [0.2] * 5)
    assert_average(pool.average(WEIGHTS), models, WEIGHTS)
    matrix = torch.tensor([WEIGHTS, [0.2] * 5, [0.0, 0.0, 1.0, 0.0, 0.0]])
    for found, weights in zip(pool.mix(matrix), matrix.tolist(), strict=True):
        assert_average(found, models, weights)
    assert pool.mix([]) == []
    network(9).load_state_dict(pool.average())


def test_names(models, files):
    assert Pool.open([models[0], files[1]]).names == ("model 1", str(files[1]))
    assert set(Pool.open(files).layout.names) == set(models[0].state_dict())


def test_files_are_mapped_not_copied(files, monkeypatch):
    def copied(*args):
        raise AssertionError("a row was made")

    monkeypatch.setattr(torch, "empty", copied)
    pool = Pool.open(files)
    assert len(pool.summands(0)) == 1  # all parameters are one section


def test_rows_are_snapshots(models):
    pool = Pool.open(models)
    before = pool.average()
    with torch.no_grad():
        models[0][0].weight.zero_()
    after = pool.average()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_foreign_files(models, tmp_path):
    """Files of another order, one of them unaligned, and of another type."""
    import safetensors.torch

    state = models[0].state_dict()
    backwards = dict(reversed(state.items()))
    safetensors.torch.save_file(backwards, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    shifted = (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    (tmp_path / "b.safetensors").write_bytes(shifted)
    checkpoints.save(
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()},
        tmp_path / "c.safetensors",
    )
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for order in (paths, paths[::-1], [paths[1], paths[0], paths[2]]):
        pool = Pool.open(order, buffers="keep")
        assert pool.layout["0.weight"].dtype == "float32"
        assert all(piece.data_ptr() % 4 == 0 for n in range(3) for piece in pool.summands(n))
        found = pool.average([0.5, 0.5, 0.0] if order[0] != paths[2] else [0.0, 0.5, 0.5])
        torch.testing.assert_close(found["0.weight"], state["0.weight"])


def test_file_with_unaligned_tensors(tmp_path):
    """Legal, but no tensor can stand there: such a file cannot give the pool its layout."""
    text = (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}     '
    )
    values = torch.tensor([1.5, -2.0])
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x09" + values.numpy().tobytes())
    found = Pool.open([path, path]).average()
    assert found["a"].tolist() == [1.5, -2.0] and found["b"].tolist() == [9]


def test_memory_order_follows_the_first(models):
    models[0].to(memory_format=torch.channels_last)
    pool = Pool.open(models)
    found = pool.average(WEIGHTS)
    assert_average(found, models, WEIGHTS)
    assert found["0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_buffers(tmp_path):
    models = [network(0, 1), network(1, 4)]
    with pytest.raises(InputError, match=r"running_mean'|num_batches_tracked' and 1 more of model 2 differ"):
        Pool.open(models)
    kept = Pool.open(models, buffers="keep").average([2.0, 2.0])
    assert kept["1.running_mean"].tolist() == [1.0] * 8 and kept["1.num_batches_tracked"].item() == 1
    averaged = Pool.open(models, buffers="average").average([0.25, 0.75])
    assert averaged["1.running_mean"].tolist() == [3.25] * 8 and averaged["1.num_batches_tracked"].item() == 3
    expected = ratfast.average(models, [0.25, 0.75], buffers="average")
    assert all(torch.equal(averaged[name], expected[name]) for name in expected)


def test_gram(models, files):
    matrix = torch.stack([parameters(model) for model in models])
    for sources in (models, files):
        gram = Pool.open(sources).gram()
        assert gram.dtype == torch.float64
        torch.testing.assert_close(gram, matrix @ matrix.T, rtol=1e-12, atol=1e-12)


def test_wrong_input(models):
    pool = Pool.open(models)
    with pytest.raises(InputError, match="3 weights were given for 5 models"):
        pool.average([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="expected 5 numbers"):
        pool.mix([1.0] * 5)
    with pytest.raises(InputError, match="no models"):
        Pool.open([])
    for single in ("a.safetensors", models[0], models[0].state_dict()):
        with pytest.raises(InputError, match="a single model"):
            Pool.open(single)
    with pytest.raises(InputError, match=r"'0\.weight' is int64 in model 2"):
        Pool.open([models[0], {k: v.long() for k, v in models[1].state_dict().items()}])


def test_sections():
    entries = [
        Entry("a", (4,), (1,), "float32", 0),
        Entry("b", (0,), (1,), "float32", 16),
        Entry("c", (2,), (1,), "float32", 16),
        Entry("d", (2,), (1,), "bfloat16", 24),
        Entry("e", (2,), (1,), "bfloat16", 30),
    ]
    expected = [Section("float32", 0, 24), Section("bfloat16", 24, 4), Section("bfloat16", 30, 4)]
    assert sections(entries) == expected
    assert sections([]) == []


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_mapped(tmp_path, zipped):
    """Their tensors stay where they are, one storage each; a tied one counts once, another type is copied."""
    states = [{"a": torch.randn(40, 3), "b": torch.randn(7), "n": torch.tensor(3)} for _ in range(3)]
    for n, state in enumerate(states):
        state["c"] = state["a"]
        torch.save(state, tmp_path / f"{n}.pth", _use_new_zipfile_serialization=zipped)
    pool = Pool.open(sorted(tmp_path.glob("*.pth")))
    weights = [0.5, 0.25, -1.0]
    found, expected = pool.average(weights), ratfast.average(states, weights)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["c"].data_ptr() == found["a"].data_ptr()
    with open("/proc/self/maps") as file:
        spans = [line.split()[0].split("-") for line in file if line.strip().endswith(".pth")]
    if zipped:  # in old files addresses may not suit the types
        pointers = [piece.data_ptr() for n in range(3) for piece in pool.summands(n)]
        assert all(any(int(a, 16) <= p < int(b, 16) for a, b in spans) for p in pointers)
    mixed = Pool.open([tmp_path / "0.pth", {k: v.double() if k != "n" else v for k, v in states[1].items()}])
    both = ratfast.average([states[0], states[1]])
    torch.testing.assert_close({k: v.to(both[k].dtype) for k, v in mixed.average().items()}, both)
