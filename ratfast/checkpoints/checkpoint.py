"""What every kind of checkpoint file is once it is open: named tensors whose bytes can be had without torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast.checkpoints.hashing import sha256_files
from ratfast.checkpoints.mapped import LARGE
from ratfast.checkpoints.names import is_buffer_name
from ratfast.dtypes import BY_NAME
from ratfast.layout import Entry, Layout, TensorSpec, contiguous_strides, is_dense, same_order


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as it lies in a file.

    Attributes:
        shape: sizes.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
        strides: in elements, none negative; any view of a storage.
        memory: the bytes from the tensor's first element to its last; at any address.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    memory: memoryview

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

    def in_c_order(self) -> memoryview:
        """The tensor's bytes in C order: `memory` itself, or a copy where it lies otherwise."""
        if self.is_c_order:
            return self.memory
        import numpy as np

        itemsize = BY_NAME[self.dtype].itemsize
        # Elements are moved as bytes of their width: numpy has no bfloat16, and nothing is computed here.
        strides = tuple(stride * itemsize for stride in self.strides)
        elements = np.ndarray(self.shape, f"V{itemsize}", self.memory, strides=strides)
        return memoryview(np.ascontiguousarray(elements).reshape(-1).view(np.uint8))


class Checkpoint:
    """The tensors of a checkpoint, mapped, and what stands beside them. Made by `open_checkpoint`.

    Attributes:
        path: the file that was asked for.
        files: all files that it consists of, `path` first.
        layout: its tensors. Strides are as stored, or C order where a tensor is not dense in its storage. Offsets are
            those within `row`, and where there is none the canonical ones of `Layout.pack`.
        row: layout.nbytes bytes, mapped, where all tensors lie in one row in the order of `layout`, else None.
        contents: the bytes of each file that holds data, mapped: of all files, but of shards without their index.
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
        tensors: Mapping[str, StoredTensor] | None,
        contents: Sequence[memoryview],
        *,
        files: Sequence[Path] = (),
        layout: Layout | None = None,
        row: memoryview | None = None,
        names: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        strings: Mapping[str, str] | None = None,
        left_out: Sequence[str] = (),
    ):
        """For the openers of files; `tensors` is None where there is a row in C order, which says where they are."""
        self.path = path
        self.files = tuple(files) or (path,)
        self.contents = tuple(contents)
        self.row = row
        self.aliases = dict(aliases or {})
        self._given = tensors
        self.layout = _packed(self.tensors) if layout is None else layout
        self.names = tuple(names) or (*self.layout.names, *self.aliases)
        self.metadata = dict(metadata or {})
        self.strings = dict(strings or {})
        self.left_out = tuple(left_out)

    @functools.cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """By the names in `layout`: where and how each is stored."""
        if self._given is not None:
            return dict(self._given)
        return {
            entry.name: StoredTensor(entry.shape, entry.dtype, entry.strides, self._in_row(entry))
            for entry in self.layout
        }

    def bytes_of(self, name: str) -> memoryview:
        """A tensor's bytes in C order, at any address: mapped where it is stored so, else a copy.

        Args:
            name: of the layout or of `aliases`.
        """
        if self._given is None:
            return self._in_row(self.layout[self.aliases.get(name, name)])
        return self._tensor(name).in_c_order()

    def stored(self, name: str) -> memoryview:
        """A tensor's bytes in the order of the layout's strides, at any address.

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

    def _in_row(self, entry: Entry) -> memoryview:
        assert self.row is not None
        return self.row[entry.offset : entry.offset + entry.nbytes]

    def _tensor(self, name: str) -> StoredTensor:
        return self.tensors[self.aliases.get(name, name)]


def sha256_checkpoints(
    checkpoints: Sequence[Checkpoint],
    threads: int | Callable[[], int],
    stop: Callable[[], bool] | None = None,
) -> list[str]:
    """`Checkpoint.sha256` of several, all their files together, which is faster than one after the other.

    The mappings that are there are read, so that whoever reads the tensors finds their pages in place; where there is
    more than should stay in memory, mappings of its own.
    """
    together = [content for checkpoint in checkpoints for content in checkpoint.contents]
    files: list[Any] = together
    if sum(content.nbytes for content in together) >= LARGE:
        files = [path for checkpoint in checkpoints for path in _data_files(checkpoint)]
    digests = iter(sha256_files(files, threads, stop))
    return [
        next(digests)
        if len(checkpoint.files) == 1
        else _composed(checkpoint, [next(digests) for _ in checkpoint.contents])
        for checkpoint in checkpoints
    ]


def _data_files(checkpoint: Checkpoint) -> Sequence[Path]:
    """The files with the data: all, or all but the index."""
    return checkpoint.files if len(checkpoint.files) == 1 else checkpoint.files[1:]


def _composed(checkpoint: Checkpoint, digests: Sequence[str]) -> str:
    import hashlib

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
