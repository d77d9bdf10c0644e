"""What every kind of checkpoint file is once it is open: named tensors whose bytes can be had without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ratfast.checkpoints.hashing import sha256_files
from ratfast.checkpoints.names import is_buffer_name
from ratfast.dtypes import BY_NAME
from ratfast.layout import Layout, TensorSpec, contiguous_strides, is_dense, same_order


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as it lies in a file.

    Attributes:
        shape: sizes.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
        strides: in elements, none negative; any view of a storage.
        memory: (bytes,) uint8, from the tensor's first element to its last; at any address.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    memory: np.ndarray

    @property
    def is_dense(self) -> bool:
        """Whether `memory` holds each element once and nothing else."""
        return is_dense(self.shape, self.strides)

    @property
    def is_c_order(self) -> bool:
        """Whether `memory` is the tensor in C order."""
        if self.strides == contiguous_strides(self.shape):
            return True
        return self.is_dense and same_order(self.shape, self.strides, contiguous_strides(self.shape))

    def in_c_order(self) -> np.ndarray:
        """The tensor's bytes in C order, (nbytes,) uint8: `memory` itself, or a copy where it lies otherwise."""
        if self.is_c_order:
            return self.memory
        itemsize = BY_NAME[self.dtype].itemsize
        # Elements are moved as bytes of their width: numpy has no bfloat16, and nothing is computed here.
        strides = tuple(stride * itemsize for stride in self.strides)
        elements = np.ndarray(self.shape, f"V{itemsize}", self.memory, strides=strides)
        return np.ascontiguousarray(elements).reshape(-1).view(np.uint8)


class Checkpoint:
    """The tensors of a checkpoint, mapped, and what stands beside them. Made by `open_checkpoint`.

    Attributes:
        path: the file that was asked for.
        files: all files that it consists of, `path` first.
        layout: its tensors. Strides are as stored, or C order where a tensor is not dense in its storage. Offsets are
            those within `row`, and where there is none the canonical ones of `Layout.pack`.
        row: (layout.nbytes,) uint8, mapped, where all tensors lie in one row in the order of `layout`, else None.
        tensors: by the names in `layout`: where and how each is stored.
        names: of all tensors and aliases, in the order of the file.
        aliases: further names of tensors: name -> the name in `layout` whose memory it shares exactly.
        metadata: ratfast's note in a safetensors file; what plain values stand beside the state dict in a
            file of `torch.save`.
        strings: other entries of a safetensors file's `__metadata__`.
        left_out: keys beside the state dict that hold tensors, such as the optimizer's, and so are in none of these.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, StoredTensor],
        *,
        files: Sequence[Path] = (),
        layout: Layout | None = None,
        row: np.ndarray | None = None,
        names: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        strings: Mapping[str, str] | None = None,
        left_out: Sequence[str] = (),
    ):
        self.path = path
        self.files = tuple(files) or (path,)
        self.layout = _packed(tensors) if layout is None else layout
        self.row = row
        self.aliases = dict(aliases or {})
        self.names = tuple(names) or (*tensors, *self.aliases)
        self.metadata = dict(metadata or {})
        self.strings = dict(strings or {})
        self.left_out = tuple(left_out)
        self.tensors = dict(tensors)

    def bytes_of(self, name: str) -> np.ndarray:
        """A tensor's bytes in C order, (nbytes,) uint8, at any address: mapped where it is stored so, else a copy.

        Args:
            name: of the layout or of `aliases`.
        """
        return self._tensor(name).in_c_order()

    def stored(self, name: str) -> np.ndarray:
        """A tensor's bytes in the order of the layout's strides, (nbytes,) uint8, at any address.

        They are mapped, except for a tensor that is not dense in its storage, which is copied in C order.

        Args:
            name: of the layout or of `aliases`.
        """
        tensor = self._tensor(name)
        return tensor.memory if tensor.is_dense else tensor.in_c_order()

    def sha256(self, stop: Callable[[], bool] | None = None) -> str:
        """SHA-256 in hexadecimal: of the file; of a checkpoint in shards that of the index file's bytes followed by
        the hexadecimal digest of each further file, in the order of `files`.

        Args:
            stop: asked now and then whether to give up, by InterruptedError.
        """
        return sha256_checkpoints([self], 1, stop)[0]

    def _tensor(self, name: str) -> StoredTensor:
        return self.tensors[self.aliases.get(name, name)]


def sha256_checkpoints(
    checkpoints: Sequence[Checkpoint], threads: int, stop: Callable[[], bool] | None = None
) -> list[str]:
    """`Checkpoint.sha256` of several, all their files together, which is faster than one after the other."""
    files = [file for checkpoint in checkpoints for file in _contents(checkpoint)]
    digests = iter(sha256_files(files, threads, stop))
    return [
        next(digests)
        if len(checkpoint.files) == 1
        else _composed(checkpoint, [next(digests) for _ in _contents(checkpoint)])
        for checkpoint in checkpoints
    ]


def _contents(checkpoint: Checkpoint) -> Sequence[Path]:
    """The files with the data: all, or all but the index."""
    return checkpoint.files if len(checkpoint.files) == 1 else checkpoint.files[1:]


def _composed(checkpoint: Checkpoint, digests: Sequence[str]) -> str:
    return hashlib.sha256(checkpoint.path.read_bytes() + "".join(digests).encode()).hexdigest()


def _packed(tensors: Mapping[str, StoredTensor]) -> Layout:
    return Layout.pack(
        TensorSpec(
            name,
            tensor.shape,
            tensor.dtype,
            tensor.strides if tensor.is_dense else None,
            is_buffer_name(name, tensor.dtype),
        )
        for name, tensor in tensors.items()
    )
