"""A checkpoint in shards: an index file, which says in which of several files each tensor is.

The index is the JSON object that Hugging Face's libraries write beside the shards: `{"metadata": {...}, "weight_map":
{tensor: file name}}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ratfast.checkpoints.checkpoint import Checkpoint, StoredTensor
from ratfast.checkpoints.header import HEADER_LIMIT, decode_object, open_input
from ratfast.errors import InputError


def open_shards(
    path: str | os.PathLike[str], open_file: Callable[..., Checkpoint], *, writable: bool = False
) -> Checkpoint:
    """Opens the index and maps every shard.

    Args:
        path: the index file.
        open_file: opens one shard, a safetensors file or one of `torch.save`.
        writable: private copies: what is written into them stays in memory and never reaches the files.

    Raises:
        InputError: the index is malformed, names a file outside its folder or one that is missing, or does not say
            of the shards' tensors exactly where they are.
    """
    index = Path(path)
    fields = _read_index(index)
    weight_map = _weight_map(index, fields)
    names = sorted(set(weight_map.values()))
    shards = {name: _open(index, name, open_file, writable) for name in names}
    tensors: dict[str, StoredTensor] = {}
    aliases: dict[str, str] = {}
    homes: dict[str, str] = {}
    for file, shard in shards.items():
        for name in shard.names:
            if name in homes:
                raise InputError(f"{index}: the tensor {name!r} is in two shards, {homes[name]} and {file}")
            homes[name] = file
            if name not in weight_map:
                raise InputError(f"{index}: the tensor {name!r} of {file} is missing from the weight_map")
        tensors |= shard.tensors
        aliases |= shard.aliases
    for name, file in weight_map.items():
        if homes.get(name) != file:
            raise InputError(f"{index}: the tensor {name!r} is not in {file}, where the weight_map says")
    metadata = fields.get("metadata")
    return Checkpoint(
        index,
        {name: tensors[name] for name in weight_map if name in tensors},
        [content for shard in shards.values() for content in shard.contents],
        files=(index, *(index.parent / name for name in names)),
        names=tuple(weight_map),
        aliases=aliases,
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _read_index(index: Path) -> dict[str, Any]:
    with open_input(index) as file:
        size = os.fstat(file.fileno()).st_size
        if size > HEADER_LIMIT:
            raise InputError(
                f"{index} is not a valid index of shards: it has {size} bytes, expected at most {HEADER_LIMIT}"
            )
        text = file.read()

    def malformed(reason: str) -> InputError:
        return InputError(f"{index} is not a valid index of shards: {reason}")

    return decode_object(text.lstrip(b" \t\r\n"), "it", malformed)


def _weight_map(index: Path, fields: dict[str, Any]) -> dict[str, str]:
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{index} is not a valid index of shards: it has no weight_map {{tensor: file name}}"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise InputError(
                f"{index}: the weight_map gives {name!r} {json.dumps(file)[:80]}, expected a file name"
            )
        if file in ("", ".", "..") or any(character in file for character in "/\\\0"):
            raise InputError(
                f"{index}: the weight_map names {file!r}, expected a file in the folder of the index"
            )
    return weight_map


def _open(index: Path, name: str, open_file: Callable[..., Checkpoint], writable: bool) -> Checkpoint:
    try:
        path = index.parent / name
        path.stat()
    except (OSError, UnicodeEncodeError):
        raise InputError(f"{index}: its shard {name!r} is missing") from None
    return open_file(path, writable=writable)
