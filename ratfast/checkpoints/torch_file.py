"""A file of `torch.save` as a checkpoint, read without torch and without running anything in it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from ratfast.checkpoints.checkpoint import Checkpoint, StoredTensor
from ratfast.checkpoints.containers import Storages, itemsize_of, read_legacy, read_zip
from ratfast.checkpoints.descriptions import Tensor, Unsupported, make_table
from ratfast.checkpoints.header import ZIP_START
from ratfast.checkpoints.mapped import map_file
from ratfast.checkpoints.pickle_machine import ForbiddenGlobal, PickleError
from ratfast.checkpoints.state_dicts import find_state_dict
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError

_TABLE = make_table()
_OVERLAP = 8  # tensors that share memory may together be as many times as large as the file...
_FREE = 1 << 20  # ...plus these bytes


def open_torch_file(
    path: str | os.PathLike[str], *, key: str | None = None, writable: bool = False
) -> Checkpoint:
    """Maps a file of `torch.save`.

    Args:
        path: the file.
        key: which of its entries is the state dict; by default it is found.
        writable: a private copy: what is written into it stays in memory and never reaches the file.

    Raises:
        InputError: the file cannot be opened, is damaged, names anything but tensors and plain values, or holds no
            state dict.
    """
    memory = map_file(path, writable=writable)
    try:
        if memory[:4].tobytes() == ZIP_START:
            content, machine, storages = read_zip(path, memory, _TABLE)
        else:
            content, machine, storages = read_legacy(memory, _TABLE)
        found = find_state_dict(path, content, key, machine)
    except ForbiddenGlobal as error:
        raise InputError(
            f"{path} was not read, and nothing in it run: besides tensors and plain values it holds {error}"
        ) from None
    except PickleError as error:
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint: {error}") from None
    tensors, aliases = _place(path, found.tensors, storages, memory.nbytes)
    return Checkpoint(
        Path(path),
        tensors,
        [memory],
        names=tuple(found.tensors),
        aliases=aliases,
        metadata=found.metadata,
        left_out=found.left_out,
    )


def _place(
    path: str | os.PathLike[str], described: Mapping[str, Tensor | Unsupported], storages: Storages, size: int
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors in their storages, and the names of those that are another one exactly."""
    tensors: dict[str, StoredTensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[object, ...], str] = {}
    allowance = _OVERLAP * size + _FREE
    for name, tensor in described.items():
        _check_kind(path, name, tensor)
        itemsize = BY_NAME[tensor.dtype].itemsize
        storage = tensor.storage
        first = storage.start * itemsize_of(storage.dtype) + tensor.offset * itemsize
        identity = (storage.key, first, tensor.dtype, tensor.shape, tensor.strides)
        if identity in names:
            aliases[name] = names[identity]
            continue
        allowance -= math.prod(tensor.shape) * itemsize
        if allowance < 0:
            raise InputError(f"{path}: the tensor {name!r} is larger than the size of its file justifies")
        tensors[name] = StoredTensor(
            tensor.shape,
            tensor.dtype,
            tensor.strides,
            _memory(path, name, tensor, first, storages[storage.key]),
        )
        names[identity] = name
    return tensors, aliases


def _check_kind(path: str | os.PathLike[str], name: str, tensor: Tensor | Unsupported) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name of the tensor {name!r} is not valid Unicode") from None
    if isinstance(tensor, Unsupported) or tensor.dtype not in BY_NAME:
        kind = tensor.kind if isinstance(tensor, Unsupported) else f"of type {tensor.dtype}"
        raise InputError(
            f"{path}: the tensor {name!r} is {kind}, expected a dense tensor of {', '.join(BY_NAME)}"
        )


def _memory(
    path: str | os.PathLike[str], name: str, tensor: Tensor, first: int, storage: memoryview
) -> memoryview:
    if 0 in tensor.shape:
        return storage[:0]
    itemsize = BY_NAME[tensor.dtype].itemsize
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    end = first + (last + 1) * itemsize
    own = tensor.storage
    if end > (own.start + own.numel) * itemsize_of(own.dtype) or end > storage.nbytes:
        raise InputError(f"{path}: the tensor {name!r} reaches beyond its storage")
    return storage[first:end]
