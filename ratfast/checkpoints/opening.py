"""Opening a checkpoint of whatever kind, without torch."""

from __future__ import annotations

import os

from ratfast.checkpoints.checkpoint import Checkpoint
from ratfast.checkpoints.finding import INDEX_SUFFIX
from ratfast.checkpoints.header import ZIP_START, is_safetensors, open_input
from ratfast.checkpoints.safetensors_file import open_safetensors
from ratfast.checkpoints.shards import open_shards
from ratfast.errors import InputError

_PROTOCOL = b"\x80"  # the first opcode of every pickle of torch.save


def open_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, writable: bool = False
) -> Checkpoint:
    """Opens a checkpoint: its tensors are described and mapped, not read.

    The kind of a file is told by its suffix where that is .safetensors or .index.json, else by its start.

    Args:
        path: a safetensors file, a file of `torch.save` (of any suffix, zip or older), or the index of shards.
        key: in a file of `torch.save`, which entry is the state dict; by default the first of `state_dict`, `model`,
            `state_dict_ema` and `model_dict` (DomainBed's), or the whole where it is one itself.
        writable: map privately: what is written into the arrays stays in memory and never reaches the file.

    Raises:
        InputError: the file cannot be opened, is malformed, or holds more than tensors and plain values.
    """
    if not os.fsdecode(path).lower().endswith(INDEX_SUFFIX):
        return open_file(path, key=key, writable=writable)
    _check_no_key(path, key)
    return open_shards(path, open_file, writable=writable)


def open_file(path: str | os.PathLike[str], *, key: str | None = None, writable: bool = False) -> Checkpoint:
    """`open_checkpoint` of a file that is not an index."""
    if is_safetensors(path):
        _check_no_key(path, key)
        return open_safetensors(path, writable=writable)
    with open_input(path) as file:
        start = file.read(4)
    if start == ZIP_START or start.startswith(_PROTOCOL):
        from ratfast.checkpoints.torch_file import (
            open_torch_file,  # with a pickle machine that few commands need
        )

        return open_torch_file(path, key=key, writable=writable)
    raise InputError(
        f"{path} cannot be read as a PyTorch checkpoint: it starts neither like a file of torch.save nor like a "
        "safetensors file"
    )


def _check_no_key(path: str | os.PathLike[str], key: str | None) -> None:
    if key is not None:
        raise InputError(f"{path} holds one state dict, so there is no {key!r} to choose")
