"""Writing safetensors files without torch: the header, then rows or chunks of bytes; all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from ratfast.checkpoints.atomic import atomic_file
from ratfast.checkpoints.header import ALIASES_KEY, HEADER_LIMIT, METADATA_KEY
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Entry, Layout, contiguous_strides

if TYPE_CHECKING:
    import numpy as np

_ALIGNMENT = 64


def encode_header(
    layout: Layout,
    metadata: Mapping[str, Any] | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    strings: Mapping[str, str] | None = None,
) -> bytes:
    """The start of a safetensors file, up to its data, which then begin at a multiple of 64 bytes.

    Args:
        layout: the tensors; packed without holes, as `Layout.pack` does.
        metadata: stored as JSON under the key "ratfast" of `__metadata__`.
        aliases: further names of tensors, noted beside the metadata: name -> its name in the layout.
        strings: further entries of `__metadata__`.

    Raises:
        InputError: the metadata cannot be expressed in JSON, use the key "aliases", or make the header longer than
            readers take; or a name is not valid Unicode.
        ValueError: the layout has holes.
    """
    # Other libraries want to know whose conventions the names follow.
    strings = {"format": "pt", **(strings or {})}
    if metadata is not None and ALIASES_KEY in metadata:
        raise InputError(
            f"the checkpoint's metadata use the key {ALIASES_KEY!r}, which is kept for names of tensors"
        )
    note = metadata if not aliases else {**(metadata or {}), ALIASES_KEY: dict(aliases)}
    if note is not None:
        try:
            strings[METADATA_KEY] = json.dumps(note, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"the checkpoint's metadata cannot be stored as JSON: {error}") from None
    fields: dict[str, Any] = {"__metadata__": strings}
    end = 0
    for entry in layout:
        if entry.offset != end:
            raise ValueError(f"the layout has a hole or an overlap before {entry.name!r}")
        if entry.name == "__metadata__":
            raise InputError("no tensor of a safetensors file can be named '__metadata__'")
        end += entry.nbytes
        fields[entry.name] = {
            "dtype": BY_NAME[entry.dtype].code,
            "shape": list(entry.shape),
            "data_offsets": [entry.offset, end],
        }
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InputError("the name of a tensor is not valid Unicode, so it cannot be stored") from None
    if len(text) > HEADER_LIMIT - _ALIGNMENT:
        raise InputError(
            f"the checkpoint's names and metadata take {len(text)} bytes, more than readers accept"
        )
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_chunks(
    path: str | os.PathLike[str],
    layout: Layout,
    chunks: Iterable[Any],
    metadata: Mapping[str, Any] | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    strings: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file from the successive pieces of its row, so that the row need never exist.

    Args:
        path: the file to create or replace, in one instant.
        layout: the tensors, in C order.
        chunks: buffers that together are `layout.nbytes` long.
        metadata: stored as JSON under the key "ratfast".
        aliases: further names of tensors: name -> its name in the layout.
        strings: further entries of `__metadata__`.

    Raises:
        InputError: the file cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
        ValueError: the chunks are not as long as the layout.
    """
    start = encode_header(layout, metadata, aliases=aliases, strings=strings)
    with atomic_file(path) as file:
        write_into(file, start, layout, chunks)


def write_into(file: BinaryIO, start: bytes, layout: Layout, chunks: Iterable[Any]) -> None:
    """Writes the content of `write_chunks` into an open file, after the `start` that `encode_header` made."""
    file.write(start)
    for chunk in chunks:
        file.write(chunk)
    if file.tell() != len(start) + layout.nbytes:
        raise ValueError(f"{file.tell() - len(start)} bytes were given for a row of {layout.nbytes}")


def write(
    path: str | os.PathLike[str],
    layout: Layout,
    row: Any,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a row as a safetensors file.

    Args:
        path: the file to create or replace, in one instant.
        layout: the tensors; those in other memory orders (channels-last) are permuted to C order.
        row: a contiguous buffer of `layout.nbytes` bytes, such as a numpy array or a tensor of uint8.
        metadata: stored as JSON under the key "ratfast".

    Raises:
        InputError: the file cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
        ValueError: the row is not as long as the layout.
    """
    data = as_bytes(row)
    if data.size != layout.nbytes:
        raise ValueError(f"the row has {data.size} bytes, but its layout {layout.nbytes}")
    chunks: Iterable[np.ndarray]
    if all(_is_c_order(entry) for entry in layout):
        chunks = [data]
    else:
        chunks = (_in_c_order(entry, data) for entry in layout)
    write_chunks(path, layout.in_c_order(), chunks, metadata)


def as_bytes(buffer: Any) -> np.ndarray:
    """A contiguous buffer as (bytes,) uint8, without copying it; a tensor on another device is fetched."""
    import numpy as np

    array = np.asarray(buffer.cpu() if hasattr(buffer, "cpu") else buffer)
    if not array.flags.c_contiguous:
        raise ValueError("the row is not contiguous")
    return array.reshape(-1).view(np.uint8)


def _is_c_order(entry: Entry) -> bool:
    expected = contiguous_strides(entry.shape)
    return all(a == b for a, b, size in zip(entry.strides, expected, entry.shape, strict=True) if size != 1)


def _in_c_order(entry: Entry, row: np.ndarray) -> np.ndarray:
    data = row[entry.offset : entry.offset + entry.nbytes]
    if _is_c_order(entry) or entry.numel == 0:
        return data
    import numpy as np

    itemsize = BY_NAME[entry.dtype].itemsize
    # Elements are moved as bytes of their width: numpy has no bfloat16, and nothing is computed here.
    elements = np.ndarray(
        entry.shape, f"V{itemsize}", data, strides=tuple(stride * itemsize for stride in entry.strides)
    )
    return np.ascontiguousarray(elements).reshape(-1).view(np.uint8)
