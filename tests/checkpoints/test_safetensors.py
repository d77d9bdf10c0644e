"""Safetensors files against the reference library, both ways."""

import warnings

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast import checkpoints
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Layout, TensorSpec

TENSORS = {
    "conv.weight": torch.randn(8, 4, 3, 3),
    "conv.bias": torch.randn(8, dtype=torch.float64),
    "bn.num_batches_tracked": torch.tensor(7),
    "half": torch.randn(5, 3).half(),
    "brain": torch.randn(7).bfloat16(),
    "empty": torch.empty(0, 4),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("mapped", [False, True])
def test_reads_what_the_reference_writes(tmp_path, mapped):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    assert_same(checkpoints.load(path, mapped=mapped), TENSORS)


@pytest.mark.parametrize("mapped", [False, True])
def test_the_reference_reads_what_is_written(tmp_path, mapped):
    path = tmp_path / "a.safetensors"
    checkpoints.save(TENSORS, path, {"model": {"backbone": "x"}})
    assert_same(safetensors.torch.load_file(path), TENSORS)
    assert_same(checkpoints.load(path, mapped=mapped), TENSORS)
    assert checkpoints.read_metadata(path) == {"model": {"backbone": "x"}}
    header = checkpoints.read_header(path)
    assert header.data_start % 64 == 0
    assert header.metadata["format"] == "pt"
    assert header.layout == Layout.pack(
        TensorSpec(e.name, e.shape, e.dtype, is_buffer=not BY_NAME[e.dtype].is_floating)
        for e in header.layout
    )


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([name for name in BY_NAME if name not in ("uint16", "uint32", "uint64")]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=5,
    )
)
def test_any_names_types_and_shapes(tmp_path_factory, specs):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {
        name: torch.randint(0, 2, shape).to(getattr(torch, dtype)) for name, (dtype, shape) in specs.items()
    }
    checkpoints.save(tensors, path)
    assert_same(safetensors.torch.load_file(path), tensors)
    safetensors.torch.save_file(tensors, path)
    assert_same(checkpoints.load(path), tensors)
    assert_same(checkpoints.load(path, mapped=True), tensors)


def test_memory_orders(tmp_path):
    """Files are in C order, whatever the order in memory."""
    base = torch.randn(4, 6, 5, 5)
    tensors = {
        "nhwc": base.to(memory_format=torch.channels_last),
        "transposed": base[0, 0].T,
        "view": base[::2, 1::2, :, ::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "parameter": torch.nn.Parameter(base[0]),
    }
    checkpoints.save(tensors, tmp_path / "a.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), tensors)


def test_rows(tmp_path):
    """A row in memory, with channels-last entries, becomes a file in C order."""
    layout = Layout.pack(
        [
            TensorSpec("a", (2, 3, 2, 2), "float32", (12, 1, 6, 3)),
            TensorSpec("b", (5,), "bfloat16"),
            TensorSpec("c", (2, 3, 1, 1), "float32", (3, 1, 3, 3)),
            TensorSpec("d", (0, 2), "float32"),
        ]
    )
    row = torch.zeros(layout.nbytes, dtype=torch.uint8)
    expected = {}
    for entry in layout:
        dtype = getattr(torch, entry.dtype)
        view = (
            row[entry.offset : entry.offset + entry.nbytes].view(dtype).as_strided(entry.shape, entry.strides)
        )
        view.copy_(torch.randn(entry.shape))
        expected[entry.name] = view
    path = tmp_path / "a.safetensors"
    for buffer in (row, row.numpy(), row.numpy().tobytes()):
        checkpoints.write(
            path, layout, np.frombuffer(buffer, np.uint8) if isinstance(buffer, bytes) else buffer
        )
        assert_same(safetensors.torch.load_file(path), expected)
        assert checkpoints.read_header(path).layout == layout.in_c_order()
    with pytest.raises(ValueError, match="the row has"):
        checkpoints.write(path, layout, row[:-1])
    with pytest.raises(ValueError, match="bytes were given"):
        checkpoints.write_chunks(path, layout.in_c_order(), [row.numpy()[:-1]])
    assert_same(safetensors.torch.load_file(path), expected)


def test_unaligned_data(tmp_path):
    """Legal, though this library and the reference never write it."""
    text = (
        b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[1,13]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    )
    values = np.array([1.5, -2.0, 3.0], np.float32)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x09" + values.tobytes())
    for mapped in (False, True):
        found = checkpoints.load(path, mapped=mapped)
        assert found["a"].tolist() == [1.5, -2.0, 3.0]
        assert found["a"].data_ptr() % 4 == 0
        assert found["b"].tolist() == [9]


def test_mapped_tensors_are_private(tmp_path):
    """Writing to mapped tensors, or replacing the file, changes neither the file nor the tensors."""
    path = tmp_path / "a.safetensors"
    checkpoints.save({"a": torch.ones(1000)}, path)
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = checkpoints.load(path, mapped=True)
    mapped["a"][0] = 5
    assert path.read_bytes() == before
    checkpoints.save({"a": torch.zeros(1000)}, path)
    assert mapped["a"].sum() == 1004


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"a": 3}, "'a' is a int"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.zeros(3).to_sparse()}, "sparse_coo"),
        ({"a": torch.zeros(3, device="meta")}, "meta"),
        ({"\ud800": torch.zeros(3)}, "not valid Unicode"),
        ({"__metadata__": torch.zeros(3)}, "__metadata__"),
    ],
)
def test_refuses_to_save(tmp_path, state, reason):
    with pytest.raises(InputError, match=reason):
        checkpoints.save(state, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_metadata_must_be_json(tmp_path):
    for value in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(InputError, match="JSON"):
            checkpoints.save({}, tmp_path / "a.safetensors", value)


@pytest.mark.cuda
def test_rows_and_tensors_on_a_device(cuda, tmp_path):
    layout = Layout.pack([TensorSpec("a", (6,), "float32")])
    values = torch.randn(6, device=cuda)
    checkpoints.write(tmp_path / "row.safetensors", layout, values.view(torch.uint8))
    checkpoints.save({"a": values}, tmp_path / "dict.safetensors")
    for name in ("row", "dict"):
        assert_same(checkpoints.load(tmp_path / f"{name}.safetensors"), {"a": values.cpu()})
