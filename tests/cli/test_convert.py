"""The command `convert`."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from click.testing import CliRunner

from ratfast import InputError, checkpoints
from ratfast.checkpoints import open_checkpoint, sha256
from ratfast.cli.convert import convert

WEIGHT = torch.randn(3, 4)
STATE = {
    "z.weight": WEIGHT,
    "a.weight": WEIGHT,
    "t": WEIGHT.t(),
    "h": torch.ones(2).half(),
    "n": torch.tensor(3),
}


def run(*arguments):
    result = CliRunner().invoke(convert, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result


def assert_same(path, expected):
    found = checkpoints.load(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert found["a.weight"] is found["z.weight"]


def test_there_and_back(tmp_path):
    """Pickle to safetensors, where other libraries read it, and back to a plain state dict."""
    content = {
        "epoch": 3,
        "args": {
            "lr": np.float64(0.5),
            2: (1, {3}),
            "nan": float("nan"),
            "b": b"\x01",
            "c": 1j,
            "big": 2**99,
        },
        "optimizer": {"m": torch.ones(2)},
        "state_dict": STATE,
    }
    source, middle, back = tmp_path / "a.pth.tar", tmp_path / "b.safetensors", tmp_path / "c.pt"
    torch.save(content, source)
    result = run(source, middle)
    assert result.stdout == f"wrote {middle}: 4 tensors, 0.0 MB\n"
    assert result.stderr == "ratfast: left out, as they are no part of the state dict: optimizer\n"
    assert_same(middle, STATE)
    note = open_checkpoint(middle).metadata
    assert note["kind"] == "conversion"
    assert note["inputs"] == [{"file": str(source), "sha256": sha256(source)}]
    args = {"lr": 0.5, "2": [1, [3]], "nan": "nan", "b": "01", "c": "1j", "big": hex(2**99)}
    assert note["values"] == {"epoch": 3, "args": args}
    torch.testing.assert_close(safetensors.torch.load_file(middle)["z.weight"], WEIGHT, rtol=0, atol=0)
    run(middle, back)
    assert_same(back, STATE)
    plain = torch.load(back, weights_only=True)
    assert list(plain) == list(checkpoints.load(middle))
    assert plain["a.weight"].data_ptr() == plain["z.weight"].data_ptr()
    assert all(torch.equal(plain[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["out.safetensors", "out.bin"])
def test_dtype(tmp_path, name):
    torch.save(STATE, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / name, "--dtype", "bfloat16")
    assert_same(tmp_path / name, {k: v.bfloat16() if v.is_floating_point() else v for k, v in STATE.items()})


def test_key(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "ema": STATE}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "b.safetensors", "--key", "ema")
    assert_same(tmp_path / "b.safetensors", STATE)
    with pytest.raises(InputError, match="holds one state dict"):
        run(tmp_path / "b.safetensors", tmp_path / "c.pt", "--key", "ema")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_onto_itself(tmp_path, name):
    path = tmp_path / name
    if name == "a.pt":
        torch.save(STATE, path)
    else:
        checkpoints.save(STATE, path, {"model": {"backbone": "x"}})
    run(path, path, "--dtype", "float64")
    assert_same(path, {k: v.double() if v.is_floating_point() else v for k, v in STATE.items()})
    assert checkpoints.read_metadata(path).get("model") == (None if name == "a.pt" else {"backbone": "x"})
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_everything_in_the_metadata_is_kept(tmp_path):
    safetensors.torch.save_file(
        {"a": torch.ones(2)}, tmp_path / "a.safetensors", {"format": "np", "author": "x"}
    )
    run(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "np", "author": "x"}


def test_shards(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    safetensors.torch.save_file({"b": torch.zeros(3)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    run(tmp_path / "model.safetensors.index.json", tmp_path / "whole.safetensors")
    assert safetensors.torch.load_file(tmp_path / "whole.safetensors")["b"].tolist() == [0, 0, 0]
    assert checkpoints.load(tmp_path / "whole.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("source", "output", "reason"),
    [
        ("none.pt", "b.safetensors", "none.pt does not exist"),
        ("a.pt", "b.onnx", "expected a name that ends in one of .safetensors, .pt, .pth, .bin"),
        ("a.pt", "none/b.safetensors", "does not exist"),
        ("a.pt", "none/b.pt", "does not exist"),
    ],
)
def test_wrong_input(tmp_path, source, output, reason):
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(InputError, match=reason):
        run(tmp_path / source, tmp_path / output)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_without_torch(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    code = (
        "import sys, atexit; from ratfast.cli.main import main;"
        "atexit.register(lambda: print('torch' in sys.modules)); main()"
    )
    command = [sys.executable, "-c", code, "convert", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


FULL = """
import resource, sys
from ratfast.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the limit acts as a full disk does
main(["convert", *sys.argv[1:]])
"""


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_full_disk(tmp_path, name):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "a.pt", tmp_path / name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"ratfast: cannot use {tmp_path / name}: file too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
