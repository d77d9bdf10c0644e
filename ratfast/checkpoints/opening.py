"""Opening a checkpoint of whatever kind, without torch."""

from __future__ import annotations

import os

from ratfast.checkpoints.checkpoint import Checkpoint
from ratfast.checkpoints.safetensors_file import open_safetensors


def open_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, writable: bool = False
) -> Checkpoint:
    """Opens a checkpoint: its tensors are described and mapped, not read.

    Args:
        path: the file.
        key: in a file of `torch.save`, which entry is the state dict; by default the first of `state_dict`, `model`,
            `state_dict_ema` and `model_dict` (DomainBed's), or the whole where it is one itself.
        writable: map privately: what is written into the arrays stays in memory and never reaches the file.

    Raises:
        InputError: the file cannot be opened, is malformed, or holds more than tensors and plain values.
    """
    return open_safetensors(path, writable=writable)
