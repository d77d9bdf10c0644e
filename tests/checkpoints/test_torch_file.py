"""Files of torch.save: read wherever the state dict stands, and without running anything."""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast import checkpoints
from ratfast.errors import InputError
from ratfast.layout import is_dense, same_order

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


def assert_like_torch(path, key=None, protocol=2):
    """Names, values, types, strides and aliases are those of torch.load, however the file is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about protocols, of which torch's own safe reader knows but 2 and 3
        expected = torch.load(path, weights_only=protocol < 4)
    expected = expected if key is None else expected[key]
    checkpoint = checkpoints.open_checkpoint(path)
    assert list(checkpoint.names) == list(expected)
    assert set(checkpoint.layout.names) == set(expected) - set(checkpoint.aliases)
    for name, tensor in expected.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert checkpoint.bytes_of(name).tobytes() == raw.tobytes(), name
        entry = checkpoint.layout[checkpoint.aliases.get(name, name)]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), str(tensor.dtype)[6:])
        assert checkpoint.stored(name).nbytes == entry.nbytes
        if name in checkpoint.aliases:
            assert expected[checkpoint.aliases[name]].data_ptr() == tensor.data_ptr()
    for mapped in (False, True):
        found = checkpoints.load(path, mapped=mapped)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name].nan_to_num(7), tensor.detach().nan_to_num(7)), name
            assert not found[name].requires_grad
            assert found[name] is found[checkpoint.aliases.get(name, name)]
            if is_dense(tensor.shape, tensor.stride()):
                assert same_order(tensor.shape, found[name].stride(), tensor.stride())


def views(base):
    return {
        "whole": base,
        "again": base,
        "transposed": base.t(),
        "columns": base[:, ::2],
        "rows": base[2:4],
        "expanded": base[:1].expand(3, -1),
        "element": base[1, 2],
        "nothing": base[:0],
        "detached": base.detach(),
        "viewed": base.view(-1),
        "parameter": torch.nn.Parameter(base[1:]) if base.is_floating_point() else base[1:],
        "last channels": base.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int16", "uint8", "bool"]
)
def test_views_like_torch(tmp_path, dtype, protocol, zipped):
    base = torch.randint(0, 2, (6, 4)).to(getattr(torch, dtype))
    content = OrderedDict(views(base))
    content._metadata = {"": {"version": 1}}  # as modules write it
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_like_torch(tmp_path / "a.pt", protocol=protocol)
    assert checkpoints.open_checkpoint(tmp_path / "a.pt").aliases == {"again": "whole", "detached": "whole"}


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "int32", "int8"])
def test_further_types(tmp_path, dtype):
    torch.save({"a": torch.tensor([[1, 2, 255]]).to(getattr(torch, dtype)).t()}, tmp_path / "a.pt")
    found = checkpoints.load(tmp_path / "a.pt")["a"]
    assert (
        found.dtype == getattr(torch, dtype) and found.tolist() == torch.load(tmp_path / "a.pt")["a"].tolist()
    )


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(["float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "bool"]),
            st.lists(st.integers(0, 4), max_size=4),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([2, 3, 4, 5]),
    st.booleans(),
)
def test_any_state_dict_like_torch(tmp_path_factory, specs, protocol, zipped):
    path = tmp_path_factory.getbasetemp() / "any.pt"
    state = {}
    for name, (dtype, shape, reverse) in specs.items():
        tensor = torch.randint(0, 2, shape).to(getattr(torch, dtype))
        state[name] = tensor.permute(tuple(reversed(range(tensor.ndim)))) if reverse else tensor
    torch.save({"state_dict": state}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_like_torch(path, "state_dict", protocol)


def test_a_module_and_its_attributes(tmp_path):
    """Shared weights, and parameters with attributes of their own, which torch pickles in another way."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[0].bias.tag = "x"
    plain = torch.ones(2)
    plain.tag = "y"
    state = {**model.state_dict(keep_vars=True), "plain": plain}
    torch.save(state, tmp_path / "a.pt")
    found = checkpoints.load(tmp_path / "a.pt")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["2.weight"] is found["0.weight"]


def test_domainbed(tmp_path):
    """An algorithm of DomainBed: its network lists the featurizer and the classifier a second time."""
    featurizer, classifier = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
    algorithm = torch.nn.ModuleDict(
        {
            "featurizer": featurizer,
            "classifier": classifier,
            "network": torch.nn.Sequential(featurizer, classifier),
        }
    )
    hparams = {
        "lr": np.float64(5e-5),
        "batch_size": 32,
        "resnet18": False,
        "choice": np.array(["ab", "c"])[1],
    }
    content = {
        "args": {"dataset": "PACS", "test_envs": [0]},
        "model_input_shape": (3, 224, 224),
        "model_num_classes": 7,
        "model_hparams": hparams,
        "model_dict": algorithm.state_dict(),
        "results": {
            "env0_in_acc": np.float64(0.5),
            "counts": np.arange(4).reshape(2, 2),
            "step": np.int64(3),
        },
    }
    torch.save(content, tmp_path / "model_best.pkl")
    checkpoint = checkpoints.open_checkpoint(tmp_path / "model_best.pkl")
    assert len(checkpoint.layout) == 4
    assert checkpoint.aliases == {
        f"network.{number}.{part}": f"{name}.{part}"
        for number, name in enumerate(["featurizer", "classifier"])
        for part in ("weight", "bias")
    }
    assert checkpoint.metadata == {
        "args": {"dataset": "PACS", "test_envs": [0]},
        "model_input_shape": (3, 224, 224),
        "model_num_classes": 7,
        "model_hparams": {"lr": 5e-5, "batch_size": 32, "resnet18": False, "choice": "c"},
        "results": {"env0_in_acc": 0.5, "counts": [[0, 1], [2, 3]], "step": 3},
    }
    torch.save(torch.nn.Sequential(featurizer, classifier).state_dict(), tmp_path / "network_best.pkl")
    assert checkpoints.open_checkpoint(tmp_path / "network_best.pkl").names == (
        *("0.weight", "0.bias", "1.weight", "1.bias"),
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_timm_and_plain_values(tmp_path, protocol):
    values = {
        "epoch": 3,
        "metric": 81.25,
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.Path("/x/y"), sizes=[1, (2, 3)], none=None, nested={"a": b"q"}
        ),
        "big": 2**100,
        "set": {1, "a"},
        "frozen": frozenset([2]),
        "complex": 1 + 2j,
        "bytes": bytearray(b"zz"),
        "empty": b"",
        "shape": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "numpy": [np.float32(0.5), np.bool_(True), np.uint8(7), np.float16(2), np.int32(-1)],
        "arrays": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big end": np.arange(3, dtype=">i4"),
        "kind": np.dtype("f4"),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
    }
    content = {
        **values,
        "state_dict": STATE,
        "state_dict_ema": {"e": torch.ones(1)},
        "optimizer": {0: torch.ones(1)},
    }
    torch.save(content, tmp_path / "a.pth.tar", pickle_protocol=protocol)
    checkpoint = checkpoints.open_checkpoint(tmp_path / "a.pth.tar")
    assert checkpoint.left_out == ("state_dict_ema", "optimizer")
    assert checkpoint.metadata == {
        **values,
        "args": {"lr": 0.1, "out": "/x/y", "sizes": [1, (2, 3)], "none": None, "nested": {"a": b"q"}},
        "bytes": b"zz",
        "dtype": "torch.bfloat16",
        "device": "cuda:1",
        "numpy": [0.5, True, 7, 2.0, -1],
        "arrays": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "big end": [0, 1, 2],
        "kind": "<f4",
    }
    assert list(checkpoints.load(tmp_path / "a.pth.tar", key="state_dict_ema")) == ["e"]
    for key, reason in {
        "ema": "no state dict under 'ema': it has 'state_dict'",
        "optimizer": "under 0",
    }.items():
        with pytest.raises(InputError, match=reason):
            checkpoints.load(tmp_path / "a.pth.tar", key=key)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.ones(2, dtype=torch.complex64), "'x' is of type complex64"),
        (lambda: torch.ones(2).to(torch.float8_e4m3fn), "'x' is of type float8_e4m3fn"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "'x' is quantised"),
        (lambda: torch.eye(3).to_sparse(), "'x' is sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "'x' is sparse"),
        (lambda: torch.ones(2, device="meta"), "'x' is a meta tensor"),
        (lambda: torch.view_as_complex(torch.ones(2, 2)).conj().imag, "'x' is stored as the negative"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(quantized|Sparse CSR)")
def test_other_tensors_are_refused_by_name(tmp_path, make, reason, zipped):
    torch.save({"a": torch.ones(1), "x": make()}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=reason):
        checkpoints.open_checkpoint(tmp_path / "a.pt")


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The zip archive with its members changed: {name: content} to the same."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in change(members).items():
            file.writestr(name, data)


def test_archives(tmp_path):
    """Members at odd addresses are read; compressed, missing, short or big-endian ones are refused."""
    path = tmp_path / "a.pt"

    def opened(change, compression=zipfile.ZIP_STORED):
        torch.save(STATE, path)
        rewritten(path, change, compression)
        return checkpoints.load(path)

    for padding in range(4):
        assert_same(opened(lambda members, padding=padding: {"a/" + "p" * padding: b"", **members}))
    for change, reason in [
        (
            lambda members: {name: data for name, data in members.items() if not name.endswith("data/1")},
            "lacks the data",
        ),
        (
            lambda members: {n: d[:-1] if n.endswith("data/0") else d for n, d in members.items()},
            "shorter than",
        ),
        (
            lambda members: {n: b"big" if n.endswith("byteorder") else d for n, d in members.items()},
            "big-endian",
        ),
        (lambda members: {**members, "b/data.pkl": b"N."}, "without the member data.pkl"),
        (
            lambda members: {**members, next(iter(members)).partition("/")[0] + "/constants.pkl": b"N."},
            "TorchScript",
        ),
    ]:
        with pytest.raises(InputError, match=reason):
            opened(change)
    with pytest.raises(InputError, match="is compressed or encrypted"):
        opened(lambda members: members, zipfile.ZIP_DEFLATED)


def test_a_large_archive(tmp_path):
    """The form that members from 4 GB on have, with a further field before their data."""
    torch.save(STATE, tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "s.pt") as source, zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        for name in source.namelist():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(source.read(name))
    assert_same(checkpoints.load(tmp_path / "a.pt"))


def test_safetensors_of_another_name(tmp_path):
    checkpoints.save(STATE, tmp_path / "a.bin", {"model": {}})
    assert checkpoints.load(tmp_path / "a.bin").keys() == STATE.keys()
    assert checkpoints.read_metadata(tmp_path / "a.bin") == {"model": {}}


def test_big_endian_old_format(tmp_path):
    torch.save(STATE, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    place = whole.index(b"little_endian")
    at = whole.index(b"\x88", place)
    (tmp_path / "a.pt").write_bytes(whole[:at] + b"\x89" + whole[at + 1 :])
    with pytest.raises(InputError, match="big-endian"):
        checkpoints.load(tmp_path / "a.pt")


def test_storages_are_mapped_not_copied(tmp_path):
    """Whatever the format, opening a file reads the pickle alone; a private mapping never reaches the file."""
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        torch.save(
            {"a": torch.ones(1 << 20), "b": torch.ones(4)}, path, _use_new_zipfile_serialization=zipped
        )
        checkpoint = checkpoints.open_checkpoint(path)
        assert checkpoint.stored("a").readonly and checkpoint.stored("a").obj is checkpoint.contents[0].obj
        assert checkpoint.bytes_of("a").obj is checkpoint.stored("a").obj
        before = checkpoint.sha256()
        checkpoints.load(path, mapped=True)["b"].fill_(7)
        assert checkpoint.sha256() == before == hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_torch(tmp_path):
    torch.save({"model": STATE}, tmp_path / "a.pt")
    code = (
        "import sys; from ratfast.checkpoints import open_checkpoint; c = open_checkpoint(sys.argv[1]);"
        "[c.bytes_of(name) for name in c.names]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.pt")], check=False).returncode == 0
