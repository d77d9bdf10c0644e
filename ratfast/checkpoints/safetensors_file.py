"""A safetensors file as a checkpoint."""

from __future__ import annotations

import os
from typing import Any

from ratfast.checkpoints.checkpoint import Checkpoint, StoredTensor
from ratfast.checkpoints.header import ALIASES_KEY, METADATA_KEY, Header, decode_metadata
from ratfast.checkpoints.mapped import MappedFile
from ratfast.errors import InputError


def open_safetensors(path: str | os.PathLike[str], *, writable: bool = False) -> Checkpoint:
    """Maps a safetensors file.

    Args:
        path: the file.
        writable: a private copy: what is written into it stays in memory and never reaches the file.

    Raises:
        InputError: the file cannot be opened or is malformed.
    """
    file = MappedFile(path, writable=writable)
    layout = file.header.layout
    note = decode_metadata(file.header)
    aliases = _aliases(file.header, note.pop(ALIASES_KEY, {}))
    return Checkpoint(
        file.header.path,
        {
            entry.name: StoredTensor(entry.shape, entry.dtype, entry.strides, file.bytes_of(entry))
            for entry in layout
        },
        layout=layout,
        row=file.row,
        aliases=aliases,
        metadata=note,
        strings={key: value for key, value in file.header.metadata.items() if key != METADATA_KEY},
    )


def _aliases(header: Header, note: Any) -> dict[str, str]:
    if not isinstance(note, dict):
        raise InputError(f"{header.path} lists aliases that are not a JSON object of names")
    for name, target in note.items():
        if not isinstance(target, str) or target not in header.layout:
            raise InputError(
                f"{header.path} lists the alias {name!r} of {target!r}, which is none of its tensors"
            )
        if name in header.layout:
            raise InputError(f"{header.path} lists the alias {name!r}, which is itself one of its tensors")
    return note
