"""Reading the header of a safetensors file, strictly: whatever is malformed is an `InputError`.

Format: https://github.com/huggingface/safetensors#format. Eight bytes hold the header's length,
little-endian; then the header, JSON padded with spaces; then the data, every byte of which belongs to exactly
one tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast.dtypes import BY_CODE
from ratfast.errors import InputError
from ratfast.layout import Entry, Layout, contiguous_strides

METADATA_KEY = "ratfast"
ALIASES_KEY = "aliases"
"""Where ratfast's note lists further names of tensors: {name: the name in the header}."""

PICKLED_SUFFIXES = (".pt", ".pth", ".tar", ".bin", ".pkl", ".ckpt")
ZIP_START = b"PK\x03\x04"
HEADER_LIMIT = 100_000_000  # bytes of header, as in the reference implementation
_LARGEST = 2**63 - 1
_MAX_DIMENSIONS = 64  # numpy's limit


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says.

    Attributes:
        path: the file.
        layout: its tensors, in the order of their data; offsets count from `data_start`.
        metadata: the strings under `__metadata__`.
        data_start: position in the file, in bytes, of the first tensor.
    """

    path: Path
    layout: Layout
    metadata: dict[str, str]
    data_start: int


@dataclass(frozen=True)
class _Latest:
    """The header that was parsed last: the checkpoints of a pool mostly have the same one, to the byte."""

    text: bytes
    layout: Layout
    metadata: dict[str, str]


_latest: _Latest | None = None


def _remember(header: _Latest) -> None:
    global _latest
    _latest = header


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file is to be read as safetensors: by the suffix .safetensors, or whatever its name by its start.

    Raises:
        InputError: the name does not say and the file cannot be opened.
    """
    if Path(path).suffix.lower() == ".safetensors":
        return True
    with open_input(path) as file:
        start = file.read(9)
    # The header's length is below 2^32; pickles and zip archives have something else there or at the start.
    return start[4:] == bytes(4) + b"{" and not start.startswith(ZIP_START)


def open_input(path: str | os.PathLike[str]) -> Any:
    """Opens a file that the user named, for binary reading.

    Raises:
        InputError: it does not exist, is a folder or may not be read.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{os.fspath(path)!r} is not a file name: {error}") from None


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads and checks the header of a safetensors file; the data are not read.

    Raises:
        InputError: the file cannot be opened or is not a well-formed safetensors file of supported types.
    """
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _malformed(path, f"it ends after {len(prefix)} bytes")
        length = int.from_bytes(prefix, "little")
        if length > size - 8:
            raise _malformed(path, f"its header claims {length} bytes, but only {size - 8} follow")
        if length > HEADER_LIMIT:
            raise _malformed(path, f"its header claims {length} bytes, more than the limit of {HEADER_LIMIT}")
        text = file.read(length)
    if len(text) < length:
        raise _malformed(path, "it ends within its header")
    return parse_header(path, text, size - 8 - length)


def parse_header(path: str | os.PathLike[str], text: bytes, data_size: int) -> Header:
    """Checks the JSON of a header against the size of the data behind it; `path` is only named in errors.

    Args:
        path: the file it came from.
        text: the header, without the eight bytes of its length.
        data_size: bytes that follow the header.

    Raises:
        InputError: anything is malformed, or an element type is not supported.
    """
    latest = _latest
    if latest is not None and latest.text == text and latest.layout.nbytes == data_size:
        return Header(Path(path), latest.layout, dict(latest.metadata), 8 + len(text))
    header = _parsed(path, text, data_size)
    _remember(_Latest(text, header.layout, dict(header.metadata)))
    return header


def _parsed(path: str | os.PathLike[str], text: bytes, data_size: int) -> Header:
    fields = decode_object(text, "its header", lambda reason: _malformed(path, reason))
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "__metadata__ is not an object of strings")
    entries = sorted(
        (_entry(path, name, field) for name, field in fields.items()),
        key=lambda entry: (entry.offset, entry.nbytes),
    )
    end = 0
    for entry in entries:
        if entry.offset < end:
            raise _malformed(path, f"the data of tensor {entry.name!r} overlap those of another tensor")
        if entry.offset > end:
            raise _malformed(path, f"no tensor owns bytes {end} to {entry.offset} of the data")
        end = entry.offset + entry.nbytes
    if end > data_size:
        raise _malformed(path, f"its tensors need {end} bytes of data, but only {data_size} are there")
    if end < data_size:
        raise _malformed(path, f"no tensor owns the last {data_size - end} bytes of the data")
    return Header(Path(path), Layout(entries), metadata, 8 + len(text))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ratfast noted in a checkpoint: the JSON under its key; empty for files of other makers.

    Raises:
        InputError: the file is malformed, or the note is not a JSON object.
    """
    if not is_safetensors(path):
        return {}
    return decode_metadata(read_header(path))


def decode_metadata(header: Header) -> dict[str, Any]:
    """`read_metadata` of a header that is already read."""
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise InputError(f"{header.path} has metadata under {METADATA_KEY!r} that are not a JSON object")
    return note


def _malformed(path: str | os.PathLike[str], reason: str) -> InputError:
    return InputError(f"{path} is not a valid safetensors file: {reason}")


def decode_object(text: bytes, what: str, malformed: Callable[[str], InputError]) -> dict[str, Any]:
    """Strict JSON: an object without constants that JSON lacks, in which no key is there twice.

    Args:
        text: starts with its brace.
        what: what errors call it.
        malformed: makes the error of a reason.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise malformed(f"{what} has the key {twice!r} twice")
        return fields

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    if not text.startswith(b"{"):
        raise malformed(f"{what} is not a JSON object")
    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=constant)
    except InputError:
        raise
    except RecursionError:
        raise malformed(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise malformed(f"{what} is not JSON ({error})") from None


def _entry(path: str | os.PathLike[str], name: str, field: Any) -> Entry:
    """One tensor of the header, checked by itself."""
    what = f"tensor {name!r}"
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _malformed(path, f"the name of {what} is not valid Unicode") from None
    if not isinstance(field, dict) or not {"dtype", "shape", "data_offsets"} <= field.keys():
        raise _malformed(path, f"{what} lacks dtype, shape or data_offsets")
    code, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(code, str) or code not in BY_CODE:
        raise InputError(
            f"{path}: {what} has element type {code!r}, which is not supported; expected one of "
            f"{', '.join(BY_CODE)}"
        )
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _malformed(path, f"{what} has shape {_short(shape)}, expected a list of sizes")
    if math.prod(max(size, 1) for size in shape) * BY_CODE[code].itemsize > _LARGEST:
        raise _malformed(path, f"{what} has shape {_short(shape)}, which no memory can hold")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(path, f"{what} has data_offsets {_short(offsets)}, expected [begin, end]")
    entry = Entry(name, tuple(shape), contiguous_strides(tuple(shape)), BY_CODE[code].name, offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        raise _malformed(
            path,
            f"{what} of {code} and shape {_short(shape)} needs {entry.nbytes} bytes, but its "
            f"data_offsets span {offsets[1] - offsets[0]}",
        )
    return entry


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _LARGEST for value in values)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
