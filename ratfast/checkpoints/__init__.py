"""Checkpoint files: opened, mapped and found whatever their kind, and written as safetensors.

`open_checkpoint` is the way in. Importing this package, and everything in it but `load` and `save`, which give and
take torch's tensors, needs no torch; and nothing that a file contains is ever run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy
from ratfast.checkpoints.atomic import TEMPORARY_FILES, atomic_file, atomic_files
from ratfast.checkpoints.checkpoint import Checkpoint, sha256_checkpoints
from ratfast.checkpoints.finding import find_checkpoints
from ratfast.checkpoints.hashing import sha256, sha256_files, sha256_streams
from ratfast.checkpoints.header import Header, is_safetensors, read_header, read_metadata
from ratfast.checkpoints.opening import open_checkpoint
from ratfast.checkpoints.writing import as_bytes, encode_header, write, write_chunks

if TYPE_CHECKING:
    from ratfast.checkpoints.tensors import load, save

__all__ = [
    "TEMPORARY_FILES",
    "Checkpoint",
    "Header",
    "as_bytes",
    "atomic_file",
    "atomic_files",
    "encode_header",
    "find_checkpoints",
    "is_safetensors",
    "load",
    "open_checkpoint",
    "read_header",
    "read_metadata",
    "save",
    "sha256",
    "sha256_checkpoints",
    "sha256_files",
    "sha256_streams",
    "write",
    "write_chunks",
]

__getattr__ = lazy.attributes(__name__, {"load": "tensors", "save": "tensors"})
