"""Opening a checkpoint of whatever kind, without torch."""

from __future__ import annotations

import os

from ratfast.checkpoints.checkpoint import Checkpoint
from ratfast.checkpoints.containers import ZIP_START
from ratfast.checkpoints.finding import INDEX_SUFFIX
from ratfast.checkpoints.header import open_input
from ratfast.checkpoints.safetensors_file import open_safetensors
from ratfast.checkpoints.shards import open_shards
from ratfast.checkpoints.torch_file import open_torch_file
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
    name = os.fsdecode(path).lower()
    if name.endswith(INDEX_SUFFIX):
        opened = open_shards(path, open_file, writable=writable)
    elif name.endswith(".safetensors"):
        opened = open_safetensors(path, writable=writable)
    else:
        return open_file(path, key=key, writable=writable)
    if key is not None:
        raise InputError(f"{path} holds one state dict, so there is no {key!r} to choose")
    return opened


def open_file(path: str | os.PathLike[str], *, key: str | None = None, writable: bool = False) -> Checkpoint:
    """`open_checkpoint` of a file that is not an index, whose start tells what it is."""
    with open_input(path) as file:
        start = file.read(9)
    if start[:4] == ZIP_START or start[:1] == _PROTOCOL:
        return open_torch_file(path, key=key, writable=writable)
    if start[8:] == b"{" or os.fsdecode(path).lower().endswith(".safetensors"):
        if key is not None:
            raise InputError(f"{path} holds one state dict, so there is no {key!r} to choose")
        return open_safetensors(path, writable=writable)
    raise InputError(
        f"{path} cannot be read as a PyTorch checkpoint: it starts neither like a file of torch.save nor like a "
        "safetensors file"
    )
