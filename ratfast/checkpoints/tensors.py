"""Checkpoints as torch tensors: `load` for every kind of file that is read, `save` for safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratfast.checkpoints.header import is_safetensors, open_input, read_header
from ratfast.checkpoints.mapped import MappedFile
from ratfast.checkpoints.names import is_buffer_name
from ratfast.checkpoints.pickled import load_pickled
from ratfast.checkpoints.writing import as_bytes, write_chunks
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Entry, Layout, TensorSpec


def load(path: str | os.PathLike[str], *, mapped: bool = False) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors, on the CPU.

    Safetensors files are read by their suffix or start. Others are read by `torch.load` with
    `weights_only=True`, so that nothing in them runs; the state dict may stand bare or under `state_dict`,
    `model`, `state_dict_ema` or `model_dict` (DomainBed's).

    Args:
        path: the file.
        mapped: leave the tensors in the file, to be paged in when they are touched. Writing to them does not
            change the file; truncating the file meanwhile ends the process.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        InputError: the file cannot be opened, is malformed, or holds something other than tensors.
    """
    if not is_safetensors(path):
        return load_pickled(path, mapped=mapped)
    if mapped:
        file = MappedFile(path, writable=True)
        row = torch.from_numpy(file.row)
        return {entry.name: _typed(row, file.header.data_start, entry) for entry in file.header.layout}
    header = read_header(path)
    tensors = {}
    with open_input(path) as stream:
        stream.seek(header.data_start)
        for entry in header.layout:
            tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
            # The data follow each other without holes, or the header would not have been accepted.
            view = memoryview(tensor_bytes(tensor))
            if entry.nbytes and stream.readinto(view) != entry.nbytes:
                raise InputError(f"{path} became shorter while it was being read")
            tensors[entry.name] = tensor
    return tensors


def save(
    state_dict: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes tensors as a safetensors file, packed in the canonical order of `ratfast.layout`.

    Tensors in any memory order and on any device are accepted; the file holds them in C order. Tensors that
    share memory are each written in full.

    Args:
        state_dict: the tensors by name.
        path: the file to create or replace, in one instant.
        metadata: stored as JSON under the key "ratfast".

    Raises:
        InputError: an entry is not a dense tensor of a supported type, or the file cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
    """
    layout = layout_of(state_dict).in_c_order()

    def chunks() -> Iterator[np.ndarray]:
        for entry in layout:
            yield tensor_bytes(state_dict[entry.name].detach().resolve_neg().to("cpu").contiguous())

    write_chunks(path, layout, chunks(), metadata)


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


def _typed(row: Tensor, start: int, entry: Entry) -> Tensor:
    dtype = getattr(torch, entry.dtype)
    piece = row[entry.offset : entry.offset + entry.nbytes]
    if entry.nbytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    itemsize = BY_NAME[entry.dtype].itemsize
    if start % itemsize or entry.offset % itemsize:
        piece = piece.clone()  # legal in a file, but not for a tensor
    return piece.view(dtype).view(entry.shape)
