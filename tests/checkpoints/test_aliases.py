"""Tensors with several names: written once, and the same tensor again when they are read."""

import json

import pytest
import safetensors.torch
import torch

from ratfast import checkpoints
from ratfast.checkpoints import encode_header, open_checkpoint
from ratfast.errors import InputError
from ratfast.layout import Layout, TensorSpec


@pytest.mark.parametrize("mapped", [False, True])
def test_written_once_and_shared_again(tmp_path, mapped):
    weight = torch.randn(4, 4)
    state = {"b": weight, "a": weight, "view": weight.view(16), "part": weight[:2], "t": weight.t()}
    path = tmp_path / "a.safetensors"
    checkpoints.save(state, path, {"model": 1})
    assert open_checkpoint(path).aliases == {"a": "b"}
    assert open_checkpoint(path).metadata == {"model": 1}
    assert set(safetensors.torch.load_file(path)) == {"b", "view", "part", "t"}
    found = checkpoints.load(path, mapped=mapped)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["a"] is found["b"]
    assert found["view"].data_ptr() != found["b"].data_ptr()
    checkpoints.save(found, tmp_path / "b.safetensors", {"model": 1})
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    assert open_checkpoint(path).bytes_of("a").tobytes() == weight.numpy().tobytes()


def test_empty_and_negated_tensors_are_their_own(tmp_path):
    empty, base = torch.empty(0, 3), torch.view_as_complex(torch.ones(2, 2))
    state = {"e": empty, "f": empty, "imaginary": base.imag, "negative": base.conj().imag}
    checkpoints.save(state, tmp_path / "a.safetensors")
    assert open_checkpoint(tmp_path / "a.safetensors").aliases == {}
    found = checkpoints.load(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ([], "not a JSON object of names"),
        ({"x": 3}, "alias 'x' of 3"),
        ({"x": "nothing"}, "alias 'x' of 'nothing', which is none"),
        ({"x": "y", "y": "a"}, "alias 'x' of 'y', which is none"),
        ({"a": "a"}, "'a', which is itself one of its tensors"),
    ],
)
def test_wrong_notes(tmp_path, note, reason):
    layout = Layout.pack([TensorSpec("a", (2,), "float32")])
    strings = {"ratfast": json.dumps({"aliases": note})}
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_header(layout, strings=strings) + bytes(8))
    with pytest.raises(InputError, match=reason):
        open_checkpoint(path)


def test_the_key_is_kept_for_names(tmp_path):
    with pytest.raises(InputError, match="use the key 'aliases'"):
        checkpoints.save({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"aliases": {}})
