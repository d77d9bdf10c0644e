"""Checkpoints in shards: read as one, and refused where the index and the shards disagree."""

import hashlib
import json
import random

import pytest
import safetensors.torch
import torch

from ratfast import checkpoints
from ratfast.errors import InputError

STATE = {f"layer{number}.weight": torch.randn(3, number + 1) for number in range(5)}


def shards(folder, suffix=".safetensors"):
    """Three shards and their index, as Hugging Face's libraries name them; returns the index's path and its map."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(3):
        part = {name: tensor for index, (name, tensor) in enumerate(STATE.items()) if index % 3 == number}
        file = f"{stem}-{number + 1:05}-of-00003{suffix}"
        if suffix == ".safetensors":
            safetensors.torch.save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    path = folder / f"{stem}{suffix}.index.json"
    write(path, {"metadata": {"total_size": 180}, "weight_map": weight_map})
    return path, weight_map


def write(path, index):
    path.write_text(index if isinstance(index, str) else json.dumps(index))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_reads_as_one(tmp_path, suffix):
    path, weight_map = shards(tmp_path, suffix)
    checkpoint = checkpoints.open_checkpoint(path)
    assert set(checkpoint.names) == set(checkpoint.layout.names) == set(STATE)
    assert checkpoint.row is None and checkpoint.aliases == {}
    assert checkpoint.metadata == {"total_size": 180}
    assert checkpoint.files == (path, *(tmp_path / name for name in sorted(set(weight_map.values()))))
    for name, tensor in STATE.items():
        assert checkpoint.bytes_of(name).tobytes() == tensor.numpy().tobytes()
    for mapped in (False, True):
        found = checkpoints.load(path, mapped=mapped)
        assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.files[1:]]
    assert checkpoint.sha256() == hashlib.sha256(path.read_bytes() + "".join(digests).encode()).hexdigest()
    assert checkpoints.find_checkpoints(tmp_path) == [path]


def test_wrong_maps(tmp_path):
    path, weight_map = shards(tmp_path)
    first, *others = weight_map
    file = weight_map[first]
    cases = [
        ({**weight_map, "more": file}, "'more' is not in model-00001"),
        ({**weight_map, first: weight_map[others[-1]]}, "'layer0.weight' is not in model-0000[23]"),
        ({name: weight_map[name] for name in others}, "'layer0.weight' of .* is missing from the weight_map"),
        ({**weight_map, first: "none.safetensors"}, "shard 'none.safetensors' is missing"),
        ({**weight_map, first: 3}, "gives 'layer0.weight' 3, expected a file name"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ]
    escapes = [
        "../a.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/../../b",
        "a\\b",
        "\0",
        str(tmp_path / file),
    ]
    cases += [({**weight_map, first: name}, "expected a file in the folder of the index") for name in escapes]
    cases += [({**weight_map, first: name}, "is missing") for name in ("\ud800", "n" * 5000)]
    cases.append(({**weight_map, first: path.name}, "cannot be read"))
    for changed, reason in cases:
        write(path, {"weight_map": changed})
        with pytest.raises(InputError, match=reason):
            checkpoints.open_checkpoint(path)
    for text in (
        "",
        "[]",
        "{",
        '{"weight_map": NaN}',
        '{"weight_map": {}, "weight_map": {}}',
        "[" * 100_000,
        "\ud800",
    ):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(InputError, match="is not a valid index"):
            checkpoints.open_checkpoint(path)


def test_a_tensor_in_two_shards(tmp_path):
    path, weight_map = shards(tmp_path)
    safetensors.torch.save_file(STATE, tmp_path / weight_map["layer0.weight"])
    with pytest.raises(InputError, match="is in two shards"):
        checkpoints.open_checkpoint(path)


def test_mutated_indices(tmp_path):
    path, _ = shards(tmp_path)
    whole = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(1500):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(content))
            if generator.random() < 0.6:
                content[at] = generator.choice(b'"{}[],:/.\\0\xff ' + bytes([generator.randrange(256)]))
            else:
                del content[at : at + generator.randint(1, 10)]
        path.write_bytes(content)
        try:
            checkpoints.open_checkpoint(path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 1000  # noqa: PT017
    assert refused > 1000
