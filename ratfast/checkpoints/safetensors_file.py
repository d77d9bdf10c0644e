"""A safetensors file as a checkpoint."""

from __future__ import annotations

import os
from typing import Any

from ratfast.checkpoints.checkpoint import Checkpoint
from ratfast.checkpoints.header import ALIASES_KEY, METADATA_KEY, Header, decode_metadata, read_header
from ratfast.checkpoints.mapped import map_file
from ratfast.errors import InputError


def open_safetensors(path: str | os.PathLike[str], *, writable: bool = False) -> Checkpoint:
    """Maps a safetensors file.

    Args:
        path: the file.
        writable: a private copy: what is written into it stays in memory and never reaches the file.

    Raises:
        InputError: the file cannot be opened or is malformed.
    """
    header = read_header(path)
    content = map_file(path, writable=writable)
    if content.nbytes != header.data_start + header.layout.nbytes:
        raise InputError(f"{path} changed its size while it was being opened")
    note = decode_metadata(header)
    aliases = _aliases(header, note.pop(ALIASES_KEY, {}))
    return Checkpoint(
        header.path,
        None,
        [content],
        layout=header.layout,
        row=content[header.data_start :],
        aliases=aliases,
        metadata=note,
        strings={key: value for key, value in header.metadata.items() if key != METADATA_KEY},
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
