"""Torch tensors and the rows they live in: which tensors of a module can, and views of and over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Entry, Layout, TensorSpec, contiguous_strides, is_dense


def row_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a module by their names in the state dict, tied ones once.

    Raises:
        InputError: the state dict has entries that are no parameter or buffer, lacks a parameter, or there
            is no parameter at all.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} is extra state of type {type(value).__name__}, which has no place in a row"
            )
        if id(value) not in own:
            raise InputError(
                f"{name} is computed by the module's state_dict(), expected a parameter or buffer"
            )
        if id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value
    for name, parameter in module.named_parameters():
        if id(parameter) not in seen:
            raise InputError(f"parameter {name} is missing from the module's state_dict()")
    if not any(isinstance(tensor, nn.Parameter) for tensor in tensors.values()):
        raise InputError(f"{type(module).__name__} has no parameters, so there is nothing to put into a row")
    return tensors


def refuse_foreign(name: str, tensor: Tensor, device: torch.device) -> None:
    """Refuses what cannot be a view of a row on `device`.

    Raises:
        InputError: names the tensor and says what it is.
    """
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        raise InputError(f"{name} is not initialised yet; run the module once before making the arena")
    if type(tensor.data) is not Tensor:
        raise InputError(f"{name} is a {type(tensor).__name__}, expected an ordinary tensor")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{name} is sparse or quantised, expected an ordinary dense tensor")
    if dtype_name(tensor.dtype) not in BY_NAME:
        raise InputError(
            f"{name} has element type {dtype_name(tensor.dtype)}, expected one of {', '.join(BY_NAME)}"
        )
    if tensor.device != device or tensor.is_meta:
        raise InputError(
            f"{name} is on {tensor.device}, expected all tensors on one device with memory ({device})"
        )


def refuse_overlaps(tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that share memory without being the same object: views of a row would separate them.

    Raises:
        InputError: names two tensors that overlap.
    """
    last_name, last_end = "", 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.numel() == 0:
            continue
        start, end = memory_span(tensor)
        if start < last_end:
            raise InputError(f"{last_name} and {name} share memory; tie them as one parameter object instead")
        last_name, last_end = name, end


def memory_span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the byte after its last."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (reach + 1) * tensor.element_size()


def tensor_spec(name: str, tensor: Tensor) -> TensorSpec:
    """What a layout needs to know of a tensor; C order where its own memory is not dense."""
    shape = tuple(tensor.shape)
    strides = tuple(tensor.stride()) if is_dense(shape, tensor.stride()) else contiguous_strides(shape)
    return TensorSpec(
        name, shape, dtype_name(tensor.dtype), strides, is_buffer=not isinstance(tensor, nn.Parameter)
    )


def entry_view(section: Tensor, entry: Entry, start: int) -> Tensor:
    """The entry's tensor in a section of the row that begins `start` bytes from the row's start."""
    offset = (entry.offset - start) // section.element_size()
    return section.as_strided(entry.shape, entry.strides, section.storage_offset() + offset)


def row_views(row: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a row, (layout.nbytes,) uint8, by name; they share its memory."""
    sections: dict[str, tuple[Tensor, int]] = {}  # by type the row's aligned elements, and where they begin
    found = {}
    for entry in layout:
        if entry.dtype not in sections:
            start = -row.storage_offset() % entry.itemsize
            size = max(row.numel() - start, 0) // entry.itemsize * entry.itemsize
            sections[entry.dtype] = row[start : start + size].view(getattr(torch, entry.dtype)), start
        section, start = sections[entry.dtype]
        found[entry.name] = entry_view(section, entry, start)
    return found


def own_storage(section: Tensor) -> Tensor:
    """The same memory under a storage of its own.

    `torch.save` refuses tensors that view one storage as different element types, which the state dict of
    an arena with batch norm counters would be.
    """
    return torch.from_dlpack(section) if section.numel() else section


def dtype_name(dtype: torch.dtype) -> str:
    """Name of an element type as in `ratfast.dtypes`, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def same_view(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements in the same order."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.device == other.device
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def flattened(tensors: Sequence[Tensor]) -> Tensor | None:
    """One 1-D view over tensors that follow each other in one storage, or None if they do not.

    Args:
        tensors: in the order of their addresses; at least one, of one element type, dense, none empty.
    """
    first = tensors[0]
    storage = first.untyped_storage().data_ptr()
    address = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != address or tensor.untyped_storage().data_ptr() != storage:
            return None
        address += tensor.nbytes
    size = sum(tensor.numel() for tensor in tensors)
    return first.detach().as_strided((size,), (1,), first.storage_offset())
