"""The layout of a model: a fixed place for every tensor in one flat row of bytes.

A model of a known layout is a row, a pool of models a matrix. Tensors are packed without holes, so that the
row, written behind a safetensors header, is a valid safetensors file; their order keeps nearly all of them on
64-byte boundaries all the same: element types from wide to narrow, within a type parameters before buffers
(the optimizer steps over one contiguous section), and tensors whose size is no multiple of 16 elements last.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ratfast.dtypes import BY_NAME


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor that has no place yet.

    Attributes:
        name: as in the state dict.
        shape: sizes.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
        strides: in elements, of a dense tensor; None means C order.
        is_buffer: True for what the optimizer must not touch.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None = None
    is_buffer: bool = False


@dataclass(frozen=True)
class Entry:
    """A named tensor's place in the row.

    Attributes:
        name: as in the state dict.
        shape: sizes.
        strides: in elements; always those of a dense tensor without overlap.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
        offset: bytes from the start of the row.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return BY_NAME[self.dtype].itemsize

    @functools.cached_property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@functools.lru_cache(maxsize=4096)  # the models of a pool have the same few shapes
def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor of `shape` in C order."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor fills one range of memory, each element once (C order, channels-last...)."""
    expected = 1
    dimensions = sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1)
    for stride, size in dimensions:
        if stride != expected:
            return 0 in shape
        expected *= size
    return True


def same_order(shape: Sequence[int], one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two strides put the elements of a tensor into the same order in memory.

    Strides along sizes of 1, or of an empty tensor, mean nothing.
    """
    if one == other:
        return True
    return 0 in shape or all(a == b for size, a, b in zip(shape, one, other, strict=True) if size != 1)


class Layout:
    """An ordered, immutable list of entries, with look-up by name.

    Args:
        entries: in the order of their offsets.
    """

    def __init__(self, entries: Iterable[Entry]):
        self._entries = tuple(entries)
        self._by_name = {entry.name: entry for entry in self._entries}
        if len(self._by_name) != len(self._entries):
            raise ValueError("a layout holds each tensor name once")

    @classmethod
    def pack(cls, specs: Iterable[TensorSpec]) -> Layout:
        """Gives every tensor its place, in the canonical order of this module's docstring."""

        def order(spec: TensorSpec) -> tuple[int, str, bool, bool, str]:
            odd_size = math.prod(spec.shape) % 16 != 0
            return -BY_NAME[spec.dtype].itemsize, spec.dtype, spec.is_buffer, odd_size, spec.name

        entries = []
        offset = 0
        for spec in sorted(specs, key=order):
            strides = contiguous_strides(spec.shape) if spec.strides is None else spec.strides
            entries.append(Entry(spec.name, spec.shape, strides, spec.dtype, offset))
            offset += entries[-1].nbytes
        return cls(entries)

    @property
    def nbytes(self) -> int:
        """Size of the row in bytes."""
        return max((entry.offset + entry.nbytes for entry in self._entries), default=0)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the row."""
        return tuple(self._by_name)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Entry:
        return self._by_name[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def in_c_order(self) -> Layout:
        """The same tensors at the same offsets, each stored in C order: the layout of a file."""
        return Layout(
            Entry(entry.name, entry.shape, contiguous_strides(entry.shape), entry.dtype, entry.offset)
            for entry in self._entries
        )

    def differences(self, other: Layout) -> list[str]:
        """What keeps a model of `other` from being averaged with one of this layout, as short phrases.

        Names and shapes count; element types, strides and offsets do not, because averaging can bridge them.
        """
        phrases = [f"{name} is missing" for name in self.names if name not in other]
        phrases += [f"{name} is not expected" for name in other.names if name not in self]
        phrases += [
            f"{entry.name} has shape {list(other[entry.name].shape)}, expected {list(entry.shape)}"
            for entry in self._entries
            if entry.name in other and other[entry.name].shape != entry.shape
        ]
        return phrases
