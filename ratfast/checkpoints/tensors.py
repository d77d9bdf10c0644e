"""Checkpoints as torch tensors: `load` for every kind of file that is read, `save` for safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ratfast.checkpoints.atomic import atomic_file
from ratfast.checkpoints.checkpoint import Checkpoint
from ratfast.checkpoints.names import is_buffer_name
from ratfast.checkpoints.opening import open_checkpoint
from ratfast.checkpoints.writing import as_bytes, encode_header, write_into
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Entry, Layout, TensorSpec


def load(path: str | os.PathLike[str], *, mapped: bool = False, key: str | None = None) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors, on the CPU, from any kind of file that `open_checkpoint` opens.

    Nothing in the file runs. Truncating the file meanwhile ends the process. Names that share one tensor in the
    file share one here; tensors that share a part of their memory do not.

    Args:
        path: the file.
        mapped: leave the tensors in the file, to be paged in when they are touched. Writing to them does not
            change the file.
        key: which entry of a file of `torch.save` is the state dict, see `open_checkpoint`.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        InputError: the file cannot be opened, is malformed, or holds something other than tensors and plain values.
    """
    return load_checkpoint(open_checkpoint(path, key=key, writable=mapped), mapped=mapped)


def load_checkpoint(checkpoint: Checkpoint, *, mapped: bool = False) -> dict[str, Tensor]:
    """`load` of a checkpoint that is open already; `mapped` takes one that was opened as writable."""
    place = _mapped if mapped else _read
    tensors = {entry.name: place(entry, checkpoint.stored(entry.name)) for entry in checkpoint.layout}
    return {name: tensors[checkpoint.aliases.get(name, name)] for name in checkpoint.names}


def map_row(checkpoint: Checkpoint) -> Tensor | None:
    """The row of a checkpoint as (layout.nbytes,) uint8, mapped, or None where tensors cannot be views of one.

    Args:
        checkpoint: opened as writable.
    """
    if checkpoint.row is None or checkpoint.row.nbytes == 0:
        return None
    array = np.frombuffer(checkpoint.row, np.uint8)
    aligned = array.ctypes.data % 8 == 0 and all(
        entry.offset % BY_NAME[entry.dtype].itemsize == 0 for entry in checkpoint.layout
    )
    return torch.from_numpy(array) if aligned else None


def save(
    state_dict: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes tensors as a safetensors file, packed in the canonical order of `ratfast.layout`.

    Tensors in any memory order and on any device are accepted; the file holds them in C order. A tensor under
    several names is written once, and the other names are noted; tensors that share memory otherwise are each
    written in full.

    Args:
        state_dict: the tensors by name.
        path: the file to create or replace, in one instant.
        metadata: stored as JSON under the key "ratfast".

    Raises:
        InputError: an entry is not a dense tensor of a supported type, or the file cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
    """
    with atomic_file(path) as file:
        save_into(file, state_dict, metadata)


def save_into(
    file: BinaryIO,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
    *,
    strings: Mapping[str, str] | None = None,
) -> None:
    """`save` into an open file; `strings` are further entries of its `__metadata__`."""
    aliases = _aliases(state_dict)
    layout = layout_of({name: state_dict[name] for name in state_dict if name not in aliases}).in_c_order()

    def chunks() -> Iterator[np.ndarray]:
        for entry in layout:
            yield tensor_bytes(state_dict[entry.name].detach().resolve_neg().to("cpu").contiguous())

    start = encode_header(layout, metadata, aliases=aliases, strings=strings)
    write_into(file, start, layout, chunks())


def layout_of(state_dict: Mapping[str, Tensor]) -> Layout:
    """The canonical layout of a state dict, in which tensors that are not dense take dense strides.

    Buffers are those that `is_buffer_name` takes for such.

    Raises:
        InputError: an entry is not a dense tensor of a supported type.
    """
    described = [(name, dtype_name(name, tensor), tensor) for name, tensor in state_dict.items()]
    return Layout.pack(
        TensorSpec(
            name,
            tuple(tensor.shape),
            dtype,
            dense_strides(tensor),
            is_buffer_name(name, dtype),
        )
        for name, dtype, tensor in described
    )


def dtype_name(name: str, tensor: Any) -> str:
    """The entry's name in the table of element types.

    Raises:
        InputError: it is not a dense tensor of a type in the table.
    """
    if not isinstance(tensor, Tensor):
        raise InputError(f"the entry {name!r} is a {type(tensor).__name__}, expected a tensor")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in BY_NAME or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = dtype if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")
        kind = "meta tensor" if tensor.is_meta else kind
        raise InputError(f"the tensor {name!r} is {kind}, expected a dense tensor of {', '.join(BY_NAME)}")
    return dtype


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides that a dense copy of `tensor` takes: its own if it is dense already."""
    return tuple(torch.empty_like(tensor, device="meta").stride())


def tensor_bytes(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor, as (bytes,) uint8 that share it."""
    return as_bytes(tensor.reshape(-1).view(torch.uint8))


def _aliases(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of tensors that are, element for element, the memory of an earlier one: name -> the earlier name."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in state_dict.items():
        dtype_name(name, tensor)
        if tensor.numel():
            place = (
                tensor.device,
                tensor.data_ptr(),
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
                tensor.is_neg(),
            )
            earlier = first.setdefault(place, name)
            if earlier != name:
                aliases[name] = earlier
    return aliases


def _mapped(entry: Entry, data: memoryview) -> Tensor:
    array = np.frombuffer(data, np.uint8)
    if array.ctypes.data % BY_NAME[entry.dtype].itemsize or entry.nbytes == 0:
        return _read(entry, data)  # legal in a file, but not for a tensor
    elements = torch.from_numpy(array).view(getattr(torch, entry.dtype))
    return elements.as_strided(entry.shape, entry.strides)


def _read(entry: Entry, data: memoryview) -> Tensor:
    tensor = torch.empty_strided(entry.shape, entry.strides, dtype=getattr(torch, entry.dtype))
    if entry.nbytes:
        np.copyto(tensor_bytes(tensor.as_strided((entry.numel,), (1,))), np.frombuffer(data, np.uint8))
    return tensor
