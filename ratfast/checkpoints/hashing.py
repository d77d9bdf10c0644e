"""SHA-256 of many files at once: several per processor where the native module can do that, else by hashlib."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ratfast import native
from ratfast.checkpoints.mapped import let_go, map_file

_ROUND_BYTES = 128 << 20  # of all files together that are hashed at a time
_FILES = 64  # that are mapped at a time

FileName = str | os.PathLike[str]
Stop = Callable[[], bool]


class Streams(Protocol):
    """SHA-256 of several messages that come piece by piece; made by `sha256_streams`."""

    def update(self, buffers: Sequence[Any], threads: int) -> None:
        """Appends to each message a buffer of contiguous bytes, of any length, on this many threads."""

    def digests(self) -> list[bytes]:
        """The 32 bytes of each message's digest so far; more may follow."""


def sha256_streams(count: int) -> Streams:
    """SHA-256 of `count` messages that come piece by piece, such as files that are read side by side.

    With the native module, on processors that have SHA instructions, a thread advances several messages at once.
    """
    core = native.load_core()
    native_streams = getattr(core, "Sha256Streams", None)
    return _HashlibStreams(count) if native_streams is None else native_streams(count)


def sha256_files(
    files: Sequence[FileName | Any], threads: int | Callable[[], int], stop: Stop | None = None
) -> list[str]:
    """SHA-256 of the content of files, in hexadecimal.

    Args:
        files: their names, or their content where it is mapped already: anything that lends contiguous bytes, such
            as `mmap.mmap` or an array of uint8. Files given by name are mapped, and their pages given back behind
            the place that is read.
        threads: how many to use; or a function that says so for every 128 MiB.
        stop: asked now and then whether to give up.

    Returns:
        One digest per file, in their order.

    Raises:
        InputError: a file cannot be opened or mapped.
        InterruptedError: `stop` said so.
    """
    digests: list[str] = []
    for start in range(0, len(files), _FILES):
        digests += _digests([_Content(file) for file in files[start : start + _FILES]], threads, stop)
    return digests


def sha256(path: FileName, stop: Stop | None = None) -> str:
    """`sha256_files` of one file."""
    return sha256_files([path], 1, stop)[0]


class _Content:
    """The bytes of a file."""

    def __init__(self, file: FileName | Any):
        self._is_own = isinstance(file, (str, os.PathLike))
        self._bytes = map_file(file) if self._is_own else memoryview(file)

    def __len__(self) -> int:
        return self._bytes.nbytes

    def piece(self, begin: int, end: int) -> memoryview:
        return self._bytes[begin:end]

    def let_go(self, begin: int, end: int) -> None:
        """Tells the system that these bytes, the first at the start of a page, are not needed again."""
        if self._is_own:
            let_go(self._bytes[begin:end])


def _digests(files: list[_Content], threads: int | Callable[[], int], stop: Stop | None) -> list[str]:
    """Each round hashes the same share of every file, so that all end together, however their sizes differ."""
    streams = sha256_streams(len(files))
    rounds = max(1, -(-sum(map(len, files)) // _ROUND_BYTES))
    begins = [0] * len(files)
    for number in range(1, rounds + 1):
        if stop is not None and stop():
            raise InterruptedError("hashing was given up")
        ends = [_share(len(file), number, rounds) for file in files]
        spans = list(zip(files, begins, ends, strict=True))
        number_of_threads = threads() if callable(threads) else threads
        streams.update([file.piece(begin, end) for file, begin, end in spans], number_of_threads)
        for file, begin, end in spans:
            file.let_go(begin, end)
        begins = ends
    return [digest.hex() for digest in streams.digests()]


def _share(size: int, number: int, rounds: int) -> int:
    """Where a file's round ends: in whole pages, but for the last."""
    return size if number == rounds else size * number // rounds // mmap.PAGESIZE * mmap.PAGESIZE


class _HashlibStreams:
    """`Streams` of hashlib: one message at a time per thread."""

    def __init__(self, count: int):
        import hashlib

        self._hashes = [hashlib.sha256() for _ in range(count)]

    def update(self, buffers: Sequence[Any], threads: int) -> None:
        pieces = [memoryview(buffer) for buffer in buffers]
        if len(pieces) != len(self._hashes):
            raise ValueError("one buffer per stream is needed")
        if any(piece.itemsize != 1 or piece.ndim != 1 or not piece.contiguous for piece in pieces):
            raise ValueError("buffers must be contiguous bytes of one dimension")
        from concurrent.futures import ThreadPoolExecutor

        jobs = list(zip(self._hashes, pieces, strict=True))
        jobs.sort(key=lambda job: job[1].nbytes, reverse=True)  # so that no long one starts last
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for done in [pool.submit(digest.update, piece) for digest, piece in jobs]:
                done.result()

    def digests(self) -> list[bytes]:
        return [digest.digest() for digest in self._hashes]
