"""Averages of files into a file: the same numbers as `ratfast.average`, without torch, all or nothing."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ratfast
from ratfast import InputError, checkpoints, native
from ratfast.averaging import average_files, merge_files, streaming

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def state(seed, dtype=torch.float32, statistics=0.0):
    torch.manual_seed(seed)
    return {
        "conv.weight": torch.randn(7, 3, 3, 3).to(dtype),
        "conv.bias": torch.randn(7).to(dtype),
        "bn.running_mean": torch.full((7,), float(statistics)),
        "bn.num_batches_tracked": torch.tensor(int(statistics)),
        "scale": torch.randn(()),
        "none": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
    }


def write(folder, states):
    paths = [folder / f"{index}.safetensors" for index in range(len(states))]
    for content, path in zip(states, paths, strict=True):
        checkpoints.save(content, path)
    return paths


def assert_same_average(path, states, weights=None, **options):
    found = safetensors.torch.load_file(path)
    expected = ratfast.average(states, weights, **options)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        tolerance = 1e-15 if tensor.dtype == torch.float64 else 1e-6
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tolerance = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("first", FLOATS)
@pytest.mark.parametrize("other", FLOATS)
@pytest.mark.parametrize("dtype", [None, *FLOATS])
def test_types(tmp_path, core, first, other, dtype):
    states = [state(0, first), state(1, other), state(2, first)]
    paths = write(tmp_path, states)
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    average_files(paths, tmp_path / "out.safetensors", weights=[0.5, 2.0, -1.0], dtype=name)
    assert_same_average(tmp_path / "out.safetensors", states, [0.5, 2.0, -1.0], dtype=dtype)


@pytest.mark.parametrize("piece", [8, 16, 72, 1000])
def test_pieces(tmp_path, core, monkeypatch, piece):
    """However the tensors are cut, the numbers are the same, and progress adds up."""
    states = [state(seed) for seed in range(3)]
    monkeypatch.setattr(streaming, "_PIECE_BYTES", piece)
    done = []
    written = average_files(write(tmp_path, states), tmp_path / "out.safetensors", progress=done.append)
    assert_same_average(tmp_path / "out.safetensors", states)
    assert sum(done) == written.nbytes == checkpoints.read_header(tmp_path / "out.safetensors").layout.nbytes
    assert (written.models, written.tensors) == (3, 7)
    assert max(done) <= piece


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_files(tmp_path, core, data):
    """Names, shapes, types and orders of the tensors in the files as they come."""
    specs = data.draw(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
            st.lists(st.integers(0, 4), max_size=3),
            min_size=1,
            max_size=4,
        )
    )
    states, paths = [], []
    for index in range(data.draw(st.integers(1, 3))):
        dtypes = data.draw(st.lists(st.sampled_from(FLOATS), min_size=len(specs), max_size=len(specs)))
        content = {
            name: torch.randn(specs[name]).to(dtype)
            for name, dtype in zip(data.draw(st.permutations(list(specs))), dtypes, strict=True)
        }
        states.append(content)
        paths.append(tmp_path / f"{index}.safetensors")
        safetensors.torch.save_file(content, paths[-1])
    average_files(paths, tmp_path / "out.safetensors")
    assert_same_average(tmp_path / "out.safetensors", states)


def test_unaligned_data(tmp_path, core):
    """Legal: the sums still read whole elements at their own boundaries."""
    text = (
        b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[1,13]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    ).ljust(128)  # "a" starts at byte 137
    values = torch.tensor([1.5, -2.0, 3.0])
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x09" + values.numpy().tobytes())
    average_files([path, path], tmp_path / "out.safetensors", weights=[1, 1])
    assert checkpoints.load(tmp_path / "out.safetensors")["a"].tolist() == [3.0, -4.0, 6.0]


@pytest.mark.parametrize("buffers", ["keep", "average"])
def test_buffers(tmp_path, core, buffers):
    states = [state(0, statistics=1), state(1, statistics=4), state(2, statistics=6)]
    paths = write(tmp_path, states)
    average_files(paths, tmp_path / "out.safetensors", buffers=buffers)
    assert_same_average(tmp_path / "out.safetensors", states, buffers=buffers)
    found = checkpoints.load(tmp_path / "out.safetensors")
    assert found["bn.num_batches_tracked"].item() == (1 if buffers == "keep" else 4)
    with pytest.raises(
        InputError, match=r"'bn\.\w+' and 1 more of .*1\.safetensors differ from .*0\.safetensors"
    ):
        average_files(paths, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_kept_buffers_take_the_wanted_type(tmp_path, core):
    paths = write(tmp_path, [state(0, statistics=1)])
    average_files(paths, tmp_path / "out.safetensors", dtype="bfloat16")
    assert checkpoints.load(tmp_path / "out.safetensors")["bn.running_mean"].dtype == torch.bfloat16


def test_equal_buffers_of_other_types(tmp_path, core):
    other = {
        name: tensor.bfloat16() if "mean" in name else tensor
        for name, tensor in state(1, statistics=4).items()
    }
    first = state(0, statistics=4)
    for content in (first, other):
        content["bn.running_mean"][0] = float("nan")
    average_files(write(tmp_path, [first, other]), tmp_path / "out.safetensors")


def test_truth_values(tmp_path, core):
    states = [state(0), state(1)]
    states[1]["flags"] = torch.tensor([True, True])
    paths = write(tmp_path, states)
    with pytest.raises(InputError, match="truth values of 'flags'"):
        average_files(paths, tmp_path / "out.safetensors", buffers="average")
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors"]


def test_output_may_be_an_input(tmp_path, core):
    states = [state(0), state(1)]
    paths = write(tmp_path, states)
    average_files(paths, paths[0])
    assert_same_average(paths[0], states)


def test_other_kinds_of_files(tmp_path):
    states = [state(0), state(1)]
    checkpoints.save(states[0], tmp_path / "a.safetensors")
    torch.save({"state_dict": states[1]}, tmp_path / "b.pth.tar")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.pth.tar"]
    written = average_files(paths, tmp_path / "out.safetensors", weights=[1, 2])
    assert_same_average(tmp_path / "out.safetensors", states, [1, 2])
    assert written.tensors == 7
    assert checkpoints.read_metadata(tmp_path / "out.safetensors")["inputs"][1]["file"] == str(paths[1])


def test_without_the_native_module(tmp_path, monkeypatch):
    monkeypatch.setattr("ratfast.native.load_core", lambda: None)
    states = [state(0), state(1)]
    average_files(write(tmp_path, states), tmp_path / "out.safetensors")
    assert_same_average(tmp_path / "out.safetensors", states)


def test_several_outputs_all_or_none_and_foreign_strings(tmp_path, monkeypatch, core_or_torch):
    """A file that cannot take its name leaves none of the others; what all headers say is kept."""
    paths = []
    for n in range(2):
        paths.append(tmp_path / f"{n}.safetensors")
        safetensors.torch.save_file(
            {"a": torch.full((4,), float(n))}, paths[n], {"made": "here", "n": str(n)}
        )
    before = sorted(tmp_path.iterdir())
    (tmp_path / "o-0.5.safetensors").mkdir()
    with pytest.raises(InputError, match="ordinary file"):
        merge_files(paths, tmp_path / "o.safetensors", method="wise-ft", base=0, alpha=[0.25, 0.5])
    (tmp_path / "o-0.5.safetensors").rmdir()
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        merge_files(paths, tmp_path / "o.safetensors", method="wise-ft", base=0, alpha=[0.25, 0.5])
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(os, "fsync", sync)
    written = merge_files(paths, tmp_path / "o.safetensors", method="wise-ft", base=0, alpha=[0.25, 0.5])
    for path in written.paths:
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata()["made"] == "here" and "n" not in file.metadata()


@pytest.fixture(params=["core", "torch"])
def core_or_torch(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr("ratfast.native.load_core", lambda: None)
    elif native.load_core() is None:
        pytest.skip("the native module is not built")


def test_provenance(tmp_path, core):
    paths = write(tmp_path, [state(0), state(1)])
    out = tmp_path / "out.safetensors"
    average_files(paths, out, weights=[0.25, 0.75], buffers="keep")
    assert checkpoints.read_metadata(out) == {
        "kind": "average",
        "method": "weighted",
        "weights": [0.25, 0.75],
        "inputs": [
            {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths
        ],
        "buffers": "keep",
        "version": ratfast.__version__,
    }
    average_files(paths, out)
    note = checkpoints.read_metadata(out)
    assert (note["method"], note["weights"], note["buffers"]) == ("uniform", [0.5, 0.5], "error")


@pytest.mark.parametrize(
    ("models", "kept"),
    [
        ([{"backbone": "a"}] * 2, True),
        ([{"backbone": "a"}, {"backbone": "b"}], False),
        ([{"backbone": "a"}, None], False),
    ],
)
def test_the_model_is_kept_where_all_agree(tmp_path, core, models, kept):
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for path, model in zip(paths, models, strict=True):
        checkpoints.save(state(0), path, None if model is None else {"model": model})
    average_files(paths, tmp_path / "out.safetensors")
    note = checkpoints.read_metadata(tmp_path / "out.safetensors")
    assert note.get("model") == (models[0] if kept else None)


def test_misfits(tmp_path, core):
    first = state(0)
    cases = {
        r"conv.bias has shape \[8\], expected \[7\]": {**first, "conv.bias": torch.zeros(8)},
        "scale is missing; other is not expected": {
            **{name: tensor for name, tensor in first.items() if name != "scale"},
            "other": torch.zeros(1),
        },
        "'conv.bias' is int32 in": {**first, "conv.bias": torch.zeros(7).int()},
    }
    for reason, second in cases.items():
        paths = write(tmp_path, [first, second])
        with pytest.raises(InputError, match=reason):
            average_files(paths, tmp_path / "out.safetensors")
    paths = write(tmp_path, [first, first])
    for reason, arguments in {
        "3 weights were given for 2": {"weights": [1, 2, 3]},
        "weight 1 is inf": {"weights": [float("inf"), 1]},
        "dtype is int8": {"dtype": "int8"},
        "buffers is 'x'": {"buffers": "x"},
    }.items():
        with pytest.raises(InputError, match=reason):
            average_files(paths, tmp_path / "out.safetensors", **arguments)
    with pytest.raises(InputError, match="no checkpoints"):
        average_files([], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


WITHOUT_TORCH = """
import sys
sys.path.insert(0, sys.argv[1])
from ratfast import native
if native.load_core() is None:
    import numpy_core
    native.load_core = lambda: numpy_core
from ratfast.averaging.files import average_files
average_files(sys.argv[3:], sys.argv[2])
assert "torch" not in sys.modules, "torch was imported"
"""


def test_imports_no_torch(tmp_path):
    states = [state(0), state(1)]
    out = tmp_path / "out.safetensors"
    arguments = [Path(__file__).parent, out, *write(tmp_path, states)]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], check=True)
    assert_same_average(out, states)
