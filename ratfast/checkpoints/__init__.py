"""Checkpoint files: safetensors read, mapped and written, PyTorch's read without running their code.

Importing this package, and everything in it that concerns safetensors as bytes, needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy
from ratfast.checkpoints.atomic import TEMPORARY_FILES, atomic_file
from ratfast.checkpoints.hashing import sha256, sha256_files, sha256_streams
from ratfast.checkpoints.header import Header, is_safetensors, read_header, read_metadata
from ratfast.checkpoints.mapped import MappedFile
from ratfast.checkpoints.writing import as_bytes, encode_header, write, write_chunks

if TYPE_CHECKING:
    from ratfast.checkpoints.tensors import load, save

__all__ = [
    "TEMPORARY_FILES",
    "Header",
    "MappedFile",
    "as_bytes",
    "atomic_file",
    "encode_header",
    "is_safetensors",
    "load",
    "read_header",
    "read_metadata",
    "save",
    "sha256",
    "sha256_files",
    "sha256_streams",
    "write",
    "write_chunks",
]

__getattr__ = lazy.attributes(__name__, {"load": "tensors", "save": "tensors"})
