"""Files as memory: read-only or private, paged in by the operating system as they are touched."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource

import numpy as np

from ratfast.checkpoints.header import Header, open_input, read_header
from ratfast.errors import InputError
from ratfast.layout import Entry


def map_file(path: str | os.PathLike[str], *, writable: bool = False) -> np.ndarray:
    """The content of a file, mapped.

    The mapping keeps the content as it was even when the name is given to another file, as this library's own
    writing does. It ends when the last array that came from it is gone. Another program that truncates the file
    in place would crash this one; that is the price of not copying.

    Every mapping holds one file descriptor, so the process's limit on them is raised when half are in use.

    Args:
        path: the file.
        writable: a private copy: what is written into it stays in memory and never reaches the file.

    Returns:
        (bytes of the file,) uint8.

    Raises:
        InputError: the file cannot be opened.
    """
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    with open_input(path) as file:
        if os.fstat(file.fileno()).st_size == 0:  # nothing that could be mapped
            return np.empty(0, np.uint8)
        _allow_more_files(file.fileno())
        try:
            memory = mmap.mmap(file.fileno(), 0, access=access)
        except ValueError as error:  # such as a device
            raise InputError(f"{path} cannot be read: {error}") from None
    return np.frombuffer(memory, np.uint8)


def let_go(data: np.ndarray) -> None:
    """Tells the system that what is mapped read-only under `data` is not needed soon; nothing else changes.

    The pages stay in the page cache, but no longer count as this process's. Memory of other kinds is left alone.

    Args:
        data: (bytes,) uint8, such as part of a `map_file`.
    """
    whole = data
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    memory = whole.base.obj if isinstance(whole.base, memoryview) else whole.base
    if not isinstance(memory, mmap.mmap) or whole.flags.writeable:
        return
    start = data.ctypes.data - whole.ctypes.data
    begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + data.size) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


class MappedFile:
    """The data of a safetensors file, mapped by `map_file`.

    Args:
        path: the file.
        writable: a private copy: what is written into it stays in memory and never reaches the file.

    Raises:
        InputError: the file cannot be opened, or its header is malformed.
    """

    header: Header
    row: np.ndarray  # (data bytes,) uint8

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False):
        self.header = read_header(path)
        memory = map_file(path, writable=writable)
        if memory.size != self.header.data_start + self.header.layout.nbytes:
            raise InputError(f"{path} changed its size while it was being opened")
        self.row = memory[self.header.data_start :]

    def bytes_of(self, entry: Entry) -> np.ndarray:
        """The bytes of one tensor, (entry.nbytes,) uint8, not necessarily aligned to its element type."""
        return self.row[entry.offset : entry.offset + entry.nbytes]


def _allow_more_files(descriptor: int) -> None:
    """Doubles the limit on open files, as far as the system lets it, if about half of it is used up."""
    free = os.dup(descriptor)  # the lowest number that is not in use
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and free >= soft // 2:
        more = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
        with contextlib.suppress(OSError, ValueError):  # then opening too many says so
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
