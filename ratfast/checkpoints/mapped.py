"""Files as memory: read-only or private, paged in by the operating system as they are touched."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import stat

from ratfast.checkpoints.header import open_input
from ratfast.errors import InputError

LARGE = 4 << 30
"""Bytes of input from which pages are given back behind the place that is read."""


def map_file(path: str | os.PathLike[str], *, writable: bool = False) -> memoryview:
    """The content of a file, mapped.

    The mapping keeps the content as it was even when the name is given to another file, as this library's own
    writing does. It ends when the last array that came from it is gone. Another program that truncates the file
    in place would crash this one; that is the price of not copying.

    Every mapping holds one file descriptor, so the process's limit on them is raised when half are in use.

    Args:
        path: the file.
        writable: a private copy: what is written into it stays in memory and never reaches the file.

    Returns:
        The bytes of the file. A mapping instead of an array, because what averages files needs no numpy, whose import
        would be a good part of a command's time.

    Raises:
        InputError: the file cannot be opened.
    """
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    with open_input(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0 and (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            return memoryview(file.read())  # empty, or nothing that could be mapped, such as a pipe
        _allow_more_files(file.fileno())
        try:
            memory = mmap.mmap(file.fileno(), 0, access=access)
        except ValueError as error:  # such as a device
            raise InputError(f"{path} cannot be read: {error}") from None
    return memoryview(memory)


def let_go(data: memoryview) -> None:
    """Tells the system that what is mapped read-only under `data` is not needed soon; nothing else changes.

    The pages stay in the page cache, but no longer count as this process's. Memory of other kinds is left alone.

    Args:
        data: bytes, such as part of a `map_file`.
    """
    memory = data.obj
    if not isinstance(memory, mmap.mmap) or not data.readonly or data.nbytes == 0:
        return
    import numpy as np  # for addresses, which Python hides

    start = np.frombuffer(data, np.uint8).ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _allow_more_files(descriptor: int) -> None:
    """Doubles the limit on open files, as far as the system lets it, if about half of it is used up."""
    free = os.dup(descriptor)  # the lowest number that is not in use
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and free >= soft // 2:
        more = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
        with contextlib.suppress(OSError, ValueError):  # then opening too many says so
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
