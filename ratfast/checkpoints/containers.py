"""The two file formats of `torch.save`: where in a file its pickle and the bytes of its storages are.

Both are described by torch's own `torch/serialization.py`: since torch 1.6 a zip archive whose members are stored
uncompressed, before that a sequence of pickles followed by the storages.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from ratfast.checkpoints.descriptions import STORAGE_TYPES, Storage
from ratfast.checkpoints.header import ZIP_START, open_input
from ratfast.checkpoints.pickle_machine import Global, Machine, MemoryFile, PickleError
from ratfast.dtypes import BY_NAME

_LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # its mark, then after what is of no use here the lengths of two fields
_ENCRYPTED = 0x1
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_OTHER_ITEMSIZES = {
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
}

Storages = Mapping[str, memoryview]
"""The bytes of each storage by its key."""


def read_zip(
    path: str | os.PathLike[str], memory: memoryview, table: Mapping[str, Global]
) -> tuple[Any, Machine, Storages]:
    """Reads the pickle in a zip archive of `torch.save`.

    Args:
        path: the file.
        memory: its content.
        table: what the pickle may name.

    Returns:
        What it holds, the machine that read it, and the storages that it speaks of.

    Raises:
        PickleError: the archive or the pickle is damaged, or holds what is not read.
    """
    members = _members(path, memory)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleError("it is a zip archive without the member data.pkl of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in members:
        raise PickleError("it is a TorchScript program, expected the state dict of a model")
    order = members.get(folder + "byteorder")
    if order is not None and order.tobytes() != b"little":
        raise PickleError("it was written on a big-endian machine, expected little-endian data")
    storages: dict[str, memoryview] = {}

    def persistent(identity: Any) -> Storage:
        storage = _storage(identity)
        data = members.get(f"{folder}data/{storage.key}")
        if data is None:
            raise PickleError(f"it lacks the data of storage {_short(storage.key)}")
        if data.nbytes < storage.numel * itemsize_of(storage.dtype):
            raise PickleError(f"the data of storage {_short(storage.key)} are shorter than they should be")
        storages[storage.key] = data
        return storage

    pickled = members[pickles[0]]
    machine = Machine(table, persistent, pickled.nbytes)
    return machine.run(MemoryFile(pickled)), machine, storages


def read_legacy(memory: memoryview, table: Mapping[str, Global]) -> tuple[Any, Machine, Storages]:
    """Reads a file of `torch.save` from before torch 1.6, or of its `_use_new_zipfile_serialization=False`.

    Args:
        memory: its content.
        table: what the pickle may name.

    Returns:
        As `read_zip`.

    Raises:
        PickleError: the file is damaged, or holds what is not read.
    """
    file = MemoryFile(memory)
    plain = Machine(table, None, memory.nbytes)
    if plain.run(file) != _LEGACY_MAGIC:
        raise PickleError("it is a pickle, but not one of torch.save")
    if plain.run(file) != _LEGACY_PROTOCOL:
        raise PickleError("it is of a version of torch.save's old format that is not known")
    system = plain.run(file)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise PickleError("it was written on a big-endian machine, expected little-endian data")
    types: dict[str, str] = {}

    def persistent(identity: Any) -> Storage:
        storage = _storage(identity)
        if types.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise PickleError(f"storage {_short(storage.key)} has two types of elements")
        spoken_of.append(storage)
        return storage

    spoken_of: list[Storage] = []
    machine = Machine(table, persistent, memory.nbytes)
    content = machine.run(file)
    keys = plain.run(file)
    storages = _legacy_storages(memory, file.position, keys, types)
    for storage in spoken_of:
        data = storages.get(storage.key)
        if data is None:
            raise PickleError(f"it lacks the data of storage {_short(storage.key)}")
        if data.nbytes < (storage.start + storage.numel) * itemsize_of(storage.dtype):
            raise PickleError(f"the data of storage {_short(storage.key)} are shorter than they should be")
    return content, machine, storages


def itemsize_of(dtype: str) -> int:
    """Bytes per element of a storage of one of the types of `STORAGE_TYPES`."""
    return BY_NAME[dtype].itemsize if dtype in BY_NAME else _OTHER_ITEMSIZES[dtype]


def _members(path: str | os.PathLike[str], memory: memoryview) -> dict[str, memoryview]:
    """The bytes of an archive's members by their names."""
    try:
        with open_input(path) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, LookupError, ValueError, OSError) as error:
        raise PickleError(f"its zip directory is damaged ({' '.join(str(error).split())[:100]})") from None
    members: dict[str, memoryview] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = _short(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise PickleError(f"its member {name} is compressed or encrypted, which torch.save never does")
        start = info.header_offset
        header = memory[start : start + _LOCAL_HEADER.size].tobytes() if start >= end else b""
        if len(header) < _LOCAL_HEADER.size or not header.startswith(ZIP_START):
            raise PickleError(f"its zip directory is damaged (the place of member {name})")
        _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start += _LOCAL_HEADER.size + name_size + extra_size
        end = start + info.file_size
        if info.file_size != info.compress_size or end > memory.nbytes:
            raise PickleError(f"its member {name} reaches beyond the end of the file")
        if info.filename in members:
            raise PickleError(f"its member {name} is there twice")
        members[info.filename] = memory[start:end]
    return members


def _legacy_storages(
    memory: memoryview, position: int, keys: Any, types: Mapping[str, str]
) -> dict[str, memoryview]:
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise PickleError("its list of storages is none")
    storages: dict[str, memoryview] = {}
    for key in keys:
        if key in storages or key not in types:
            raise PickleError(f"its list of storages has {_short(key)}, which is unknown or there already")
        count = memory[position : position + 8].tobytes()
        start = position + 8
        position = start + int.from_bytes(count, "little") * itemsize_of(types[key])
        if len(count) < 8 or position > memory.nbytes:
            raise PickleError(f"the data of storage {_short(key)} reach beyond the end of the file")
        storages[key] = memory[start:position]
    return storages


def _storage(identity: Any) -> Storage:
    """What a persistent id of torch says: ("storage", type, key, device, size), in old files also a view of it."""
    damaged = PickleError("a storage in it is described in a way that is not known")
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise damaged
    kind, key, _, numel, *view = identity[1:]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else None
    if name not in STORAGE_TYPES or type(key) is not str or not _is_count(numel):
        raise damaged
    if not view or view[0] is None:
        return Storage(key, STORAGE_TYPES[name], 0, numel)
    if type(view[0]) is not tuple or len(view[0]) != 3 or not all(map(_is_count, view[0][1:])):
        raise damaged
    _, start, size = view[0]
    return Storage(key, STORAGE_TYPES[name], start, size)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
