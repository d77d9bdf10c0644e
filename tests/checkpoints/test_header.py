"""The reader of safetensors headers: what it accepts, and that it refuses everything else in one sentence."""

import contextlib
import json
import random

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from ratfast.checkpoints import is_safetensors, read_header, read_metadata
from ratfast.dtypes import BY_CODE
from ratfast.errors import InputError

TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def encode(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.fixture
def refused(tmp_path):
    """Checks that a file of these bytes is refused, and returns the reason."""

    def check(content):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_header(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return check


def changed(**changes):
    return encode({"a": {**TENSOR, **changes}}, bytes(24))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends after 0 bytes"),
        (b"\x05\x00\x00", "ends after 3 bytes"),
        (encode({"a": TENSOR}, b"", length=1 << 40), "header claims"),
        (encode({"a": TENSOR}, bytes(23)), "need 24 bytes of data, but only 23"),
        (encode({"a": TENSOR}, bytes(25)), "no tensor owns the last 1 bytes"),
        (encode(b""), "not a JSON object"),
        (encode(b"[1]"), "not a JSON object"),
        (encode(b' {"a": 1}'), "not a JSON object"),
        (encode(b'{"a": '), "not JSON"),
        (encode(b'{"a": NaN}'), "not JSON"),
        (encode(b'{"a\xff": 1}'), "not JSON"),
        (encode(b'{"a":' * 100_000), "nested too deeply"),
        (encode(b'{"a": 1, "a": 2}'), "key 'a' twice"),
        (encode(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "key 'dtype' twice"),
        (encode(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'), "not valid Unicode"),
        (encode({"a": [1]}), "lacks dtype"),
        (encode({"a": {"dtype": "F32", "shape": [1]}}), "lacks dtype"),
        (changed(dtype="F33"), "'F33', which is not supported"),
        (changed(dtype=4), "not supported"),
        (changed(shape=[2, -3]), "expected a list of sizes"),
        (changed(shape=[2.0, 3]), "expected a list of sizes"),
        (changed(shape=[True, 6]), "expected a list of sizes"),
        (changed(shape={"0": 6}), "expected a list of sizes"),
        (changed(shape=[1] * 65), "expected a list of sizes"),
        (changed(shape=[10**30]), "expected a list of sizes"),
        (changed(shape=[2**40, 2**40, 0]), "no memory can hold"),
        (changed(shape=[2, 4]), "needs 32 bytes"),
        (changed(data_offsets=[0]), "expected [begin, end]"),
        (changed(data_offsets=[24, 0]), "expected [begin, end]"),
        (changed(data_offsets=[-24, 0]), "expected [begin, end]"),
        (changed(data_offsets="0,24"), "expected [begin, end]"),
        (encode({"a": TENSOR, "b": {**TENSOR, "data_offsets": [12, 36]}}, bytes(36)), "overlap"),
        (encode({"a": TENSOR, "b": {**TENSOR, "data_offsets": [28, 52]}}, bytes(52)), "owns bytes 24 to 28"),
        (encode({"__metadata__": {"a": 1}}), "__metadata__"),
        (encode({"__metadata__": "a"}), "__metadata__"),
    ],
)
def test_malformed(refused, content, reason):
    assert reason in refused(content)


def test_large_integer(refused):
    assert "not JSON" in refused(encode(b'{"a": ' + b"9" * 10_000 + b"}"))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path)
    with pytest.raises(InputError, match="not a file name"):
        read_header("a\0b.safetensors")


def test_accepts(tmp_path):
    """Empty tensors, scalars, any order of the keys, keys of the future, no padding: all legal."""
    header = {
        "z": {"dtype": "I64", "shape": [], "data_offsets": [3, 11]},
        "__metadata__": {"note": "x"},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3], "later": None},
        "e": {"dtype": "F16", "shape": [0, 5], "data_offsets": [3, 3]},
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(header, bytes(11)))
    found = read_header(path)
    assert found.metadata == {"note": "x"}
    assert found.layout.names == ("a", "e", "z")
    assert (found.layout["z"].offset, found.layout["z"].shape, found.layout["z"].dtype) == (3, (), "int64")
    path.write_bytes(encode(b"{}"))
    assert len(read_header(path).layout) == 0


def test_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    for text in ("[1]", "{", "1" + "[" * 100_000):
        path.write_bytes(encode({"__metadata__": {"ratfast": text}}))
        with pytest.raises(InputError, match="not a JSON object"):
            read_metadata(path)
    path.write_bytes(encode({"__metadata__": {"ratfast": '{"a": [1]}'}}))
    assert read_metadata(path) == {"a": [1]}
    path.write_bytes(encode(b"{}"))
    assert read_metadata(path) == {}


def test_kind_by_suffix_or_start(tmp_path):
    assert is_safetensors("a.SAFETENSORS")
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(encode(b"{}"))
    assert is_safetensors(path)
    for start in (b"PK\x03\x04" + bytes(4) + b"{", b"\x80\x02\x8a\nl\xfc\x9cF{", b'{"a":  {', b""):
        path.write_bytes(start + bytes(100))
        assert not is_safetensors(path)


def valid_files():
    """A few valid files to mutate."""
    codes = list(BY_CODE)
    generator = random.Random(0)
    files = []
    for _ in range(8):
        header, end = {"__metadata__": {"k": "v"}}, 0
        for index in range(generator.randint(1, 4)):
            code = generator.choice(codes)
            shape = [generator.randint(0, 4) for _ in range(generator.randint(0, 3))]
            size = BY_CODE[code].itemsize
            for length in shape:
                size *= length
            header[f"t{index}"] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        files.append(encode(header, bytes(end)))
    return files


def mutate(content, generator):
    content = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        kind = generator.randrange(5)
        position = generator.randrange(max(len(content), 1))
        if kind == 0 and content:
            content[position] = generator.randrange(256)
        elif kind == 1:
            content[position:position] = bytes(generator.choices(b'{}[]",:0123456789-.eE \\u', k=2))
        elif kind == 2:
            del content[position : position + generator.randint(1, 9)]
        elif kind == 3:
            del content[position:]
        elif len(content) > 20:  # a digit of a number, which keeps the JSON well-formed
            digits = [i for i, byte in enumerate(content[8:], 8) if byte in b"0123456789"]
            if digits:
                content[generator.choice(digits)] = generator.choice(b"0123456789")
        if generator.random() < 0.5 and len(content) >= 8:
            text_end = content.rfind(b"}") + 1
            content[:8] = max(text_end - 8, 0).to_bytes(8, "little")  # get past the check of the length
    return bytes(content)


def test_mutated_files(tmp_path):
    """Damaged files give an InputError or a layout that covers the data; the reference takes them, too."""
    generator = random.Random(1)
    sources = valid_files()
    path = tmp_path / "a.safetensors"
    accepted = 0
    for index in range(3000):
        content = mutate(sources[index % len(sources)], generator)
        path.write_bytes(content)
        try:
            header = read_header(path)
        except InputError:
            continue
        accepted += 1
        assert header.data_start + header.layout.nbytes == len(content)
        try:
            names = {name for name, _ in safetensors.deserialize(content)}
        except safetensors.SafetensorError as error:
            pytest.fail(f"the reference refuses {content!r}: {error}")
        assert names == set(header.layout.names)
    assert accepted > 40  # or the test would only ever see refusals


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_header(path).data_start <= len(content)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "U8", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_json, st.integers(0, 64))
def test_arbitrary_json(tmp_path_factory, header, size):
    path = tmp_path_factory.getbasetemp() / "json.safetensors"
    content = encode(header, bytes(size))
    path.write_bytes(content)
    try:
        found = read_header(path)
    except InputError:
        return
    assert found.data_start + found.layout.nbytes == len(content)
