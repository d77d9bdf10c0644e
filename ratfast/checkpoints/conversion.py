"""A checkpoint of any kind as a safetensors file: streamed, without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from ratfast.checkpoints.checkpoint import Checkpoint
from ratfast.checkpoints.elements import converted
from ratfast.checkpoints.names import is_buffer_name
from ratfast.checkpoints.writing import write_chunks
from ratfast.dtypes import BY_NAME
from ratfast.layout import Layout, TensorSpec
from ratfast.version import __version__


def write_checkpoint(
    checkpoint: Checkpoint, output: str | os.PathLike[str], *, dtype: str | None = None
) -> Layout:
    """Writes a checkpoint as a safetensors file, a tensor at a time; aliases are noted, not repeated.

    Of a safetensors file everything in its metadata is kept. Of another kind the note in the output says the
    file's name and SHA-256, and under `values` what plain values it held beside the tensors (what JSON has no form
    for as lists or text).

    Args:
        checkpoint: what to write; its file may be the output.
        output: the file to create or replace, in one instant.
        dtype: type of the floating tensors in the output; by default their own.

    Returns:
        The layout of the output.

    Raises:
        InputError: the file cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
    """
    source = checkpoint.layout
    layout = Layout.pack(
        TensorSpec(
            entry.name,
            entry.shape,
            dtype if dtype is not None and BY_NAME[entry.dtype].is_floating else entry.dtype,
            is_buffer=is_buffer_name(entry.name, entry.dtype),
        )
        for entry in source
    )

    def chunks() -> Iterator[Any]:
        for entry in layout:
            data, stored = checkpoint.bytes_of(entry.name), source[entry.name].dtype
            if stored == entry.dtype:
                yield data
            else:
                yield from converted(data, stored, entry.dtype)

    write_chunks(
        output, layout, chunks(), _note(checkpoint), aliases=checkpoint.aliases, strings=checkpoint.strings
    )
    return layout


def _note(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if checkpoint.row is not None:
        return checkpoint.metadata or None
    note: dict[str, Any] = {
        "kind": "conversion",
        "inputs": [{"file": os.fspath(checkpoint.path), "sha256": checkpoint.sha256()}],
        "version": __version__,
    }
    if checkpoint.metadata:
        note["values"] = _as_json(checkpoint.metadata)
    return note


def _as_json(value: Any) -> Any:
    """A plain value as JSON can hold it; those of pickles are nested a hundred deep at most."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [_as_json(item) for item in sorted(value, key=repr)]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # what is not Unicode cannot be stored
    return value
