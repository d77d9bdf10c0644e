"""Files of torch.save: read wherever the state dict stands, and without running anything."""

import os
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ratfast import checkpoints
from ratfast.errors import InputError

STATE = {"a.weight": torch.randn(4, 3), "a.steps": torch.tensor(3), "h": torch.randn(3).bfloat16()}


def assert_same(found):
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pth.tar", "a.bin", "a.pkl", "a"])
@pytest.mark.parametrize("place", [None, "state_dict", "model", "state_dict_ema", "model_dict"])
def test_places_and_suffixes(tmp_path, name, place, mapped):
    content = STATE if place is None else {"epoch": 3, "args": {"lr": 1e-3, "layers": [1, 2]}, place: STATE}
    torch.save(content, tmp_path / name)
    assert_same(checkpoints.load(tmp_path / name, mapped=mapped))
    assert checkpoints.read_metadata(tmp_path / name) == {}


@pytest.mark.parametrize("mapped", [False, True])
def test_old_format(tmp_path, mapped):
    torch.save(OrderedDict(STATE), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_same(checkpoints.load(tmp_path / "a.pt", mapped=mapped))


def test_parameters_are_detached(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    tensor = checkpoints.load(tmp_path / "a.pt")["a"]
    assert not tensor.requires_grad and type(tensor) is torch.Tensor


def test_prefers_state_dict(tmp_path):
    torch.save({"state_dict_ema": {"b": torch.ones(1)}, "state_dict": STATE}, tmp_path / "a.pt")
    assert_same(checkpoints.load(tmp_path / "a.pt"))


def test_plain_numbers_of_numpy(tmp_path):
    """DomainBed's hyperparameters are numpy scalars, which torch alone refuses."""
    hparams = {"lr": np.float64(1e-3), "n": np.int64(3), "flag": np.bool_(True)}
    torch.save({"model_hparams": hparams, "model_dict": STATE}, tmp_path / "a.pkl")
    assert_same(checkpoints.load(tmp_path / "a.pkl"))


class Runs:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_runs_nothing(tmp_path, zipped):
    path, trace = tmp_path / "a.pt", tmp_path / "trace"
    torch.save({**STATE, "x": Runs(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"nothing in it run.*posix\.system") as caught:
        checkpoints.load(path)
    assert not trace.exists()
    assert "weights_only" not in str(caught.value)
    torch.load(path, weights_only=False)
    assert trace.exists()  # or the test would prove nothing


def test_numpy_objects_are_refused(tmp_path):
    torch.save(
        {"x": np.array([Runs(tmp_path / "trace")], dtype=object), "model_dict": STATE}, tmp_path / "a.pkl"
    )
    with pytest.raises(InputError, match="was not read"):
        checkpoints.load(tmp_path / "a.pkl")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ([torch.ones(1)], "holds no state dict"),
        (torch.ones(1), "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"a": torch.ones(1), "b": 3}, "holds a int under 'b'"),
        ({"state_dict": {"a": [1]}}, "holds a list under 'a'"),
        ({3: torch.ones(1)}, "holds a tensor under 3"),
    ],
)
def test_no_state_dict(tmp_path, content, reason):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=reason):
        checkpoints.load(tmp_path / "a.pt")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    step = max(len(whole) // 40, 1)
    damaged = [whole[:size] for size in range(0, len(whole) - 30, step)]
    damaged += [whole[:at] + b"\xff" * 8 + whole[at + 8 :] for at in range(0, 600, 20)]
    messages = []
    for content in [*damaged, b"text", b"\x80\x02}q\x00."]:
        path.write_bytes(content)
        for mapped in (False, True):
            try:
                checkpoints.load(path, mapped=mapped)
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 80
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_another_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("hello", "world")
    with pytest.raises(InputError, match="cannot be read as a PyTorch checkpoint"):
        checkpoints.load(tmp_path / "a.pt")
