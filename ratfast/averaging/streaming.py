"""Files combined into files, piece by piece: computed while others are written and the inputs are hashed. No torch.

The process's own memory holds a few pieces, whatever the size of the models; what is mapped belongs to the page cache.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from ratfast.averaging.combination import Combination
from ratfast.averaging.file_pool import FilePool, Span, threads
from ratfast.checkpoints import Checkpoint, atomic_files, encode_header, sha256_checkpoints
from ratfast.checkpoints.mapped import LARGE
from ratfast.dtypes import BY_NAME

if TYPE_CHECKING:
    from concurrent.futures import Future

_PIECE_BYTES = 8 << 20  # of each output that are computed, then written, at a time
_PIECES = 3  # that exist at a time: one computed, one written, one between
_OWN_BYTES = 48 << 20  # of all outputs' pieces

Progress = Callable[[int], None]
Notes = Callable[[int, list[str]], dict[str, Any]]


class Hashing:
    """The SHA-256 of files, computed while other things are done; given up if its block ends early.

    Until `hasten`, one processor is left to what is done meanwhile: one thread that hashes many files gets more done
    in a second of its time than several threads of a few files.

    Args:
        files: the checkpoints.
    """

    def __init__(self, files: Sequence[Checkpoint]):
        self._files = files
        self._stop = threading.Event()
        self._is_last = False
        self._found: list[str] = []
        self._error: BaseException | None = None
        self._worker = threading.Thread(target=self._run)
        self._worker.start()

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._worker.join()

    def hasten(self) -> None:
        """Takes all processors from here on, because nothing else is left to do."""
        self._is_last = True

    def digests(self) -> list[str]:
        """All of them, in hexadecimal, once they are there."""
        self.hasten()
        self._worker.join()
        if self._error is not None:
            raise self._error
        return self._found

    def _threads(self) -> int:
        return threads() if self._is_last else max(1, threads() - 1)

    def _run(self) -> None:
        try:
            self._found = sha256_checkpoints(self._files, self._threads, self._stop.is_set)
        except BaseException as error:  # for who asks for the digests
            self._error = error


def write_outputs(
    pool: FilePool,
    combination: Combination,
    outputs: Sequence[str],
    notes: Notes,
    hashing: Hashing,
    progress: Progress | None = None,
) -> None:
    """Writes the outputs of a combination as safetensors files.

    Args:
        pool: the inputs.
        combination: of K outputs.
        outputs: K files to create or replace; they may be inputs, which are read to the end before.
        notes: the metadata of output k, given the inputs' SHA-256.
        hashing: of the inputs.
        progress: called with the number of bytes of output done since the last call.

    Raises:
        InputError: a result is not finite, or an output cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
    """
    with atomic_files(outputs) as files:
        strings = pool.strings()
        unknown = ["0" * 64] * len(pool)
        for k, file in enumerate(files):
            file.write(encode_header(pool.layout, notes(k, unknown), aliases=pool.aliases, strings=strings))
        _write_rows(pool, combination, files, hashing, progress)
        known = hashing.digests()
        for k, file in enumerate(files):
            end = file.tell()
            file.seek(0)
            start = encode_header(pool.layout, notes(k, known), aliases=pool.aliases, strings=strings)
            if len(start) + pool.layout.nbytes != end:
                raise ValueError("the header changed its length with the inputs' SHA-256")
            file.write(start)


def _write_rows(
    pool: FilePool,
    combination: Combination,
    files: Sequence[BinaryIO],
    hashing: Hashing,
    progress: Progress | None,
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # an import that costs as much as opening twenty files

    size = max(8, min(_PIECE_BYTES, _OWN_BYTES // (_PIECES * len(files)) // 8 * 8, pool.layout.nbytes))
    free = deque([_memory(size) for _ in files] for _ in range(_PIECES))
    written: deque[tuple[Future[None], list[memoryview]]] = deque()
    large = pool.nbytes() >= LARGE
    with ThreadPoolExecutor(1) as writer:
        for spans, nbytes in pieces(pool, size):
            if not free:
                done, memory = written.popleft()
                done.result()
                free.append(memory)
            memory = free.popleft()
            outputs = [row[:nbytes] for row in memory]
            pool.compute(combination, spans, outputs)
            if large:
                pool.let_go(spans)
            written.append((writer.submit(_write, files, outputs), memory))
            if progress is not None:
                progress(nbytes)
        hashing.hasten()
        # What is on its way to the disk while the inputs are still hashed need not be waited for afterwards.
        started = writer.submit(_start_writing_out, files)
        for done, _ in written:
            done.result()
        started.result()


def pieces(pool: FilePool, size: int) -> Iterator[tuple[list[Span], int]]:
    """The elements of the result's row in its order, as spans that together have up to `size` bytes; and how many."""
    spans: list[Span] = []
    filled = 0
    for entry in pool.layout:
        itemsize = BY_NAME[entry.dtype].itemsize
        start = 0
        while start < entry.numel:
            if size - filled < itemsize:
                yield spans, filled
                spans, filled = [], 0
            count = min(entry.numel - start, (size - filled) // itemsize)
            spans.append(Span(entry.name, start, count))
            start += count
            filled += count * itemsize
    if spans:
        yield spans, filled


def _memory(size: int) -> memoryview:
    """Memory of this process alone, at the start of a page."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _start_writing_out(files: Sequence[BinaryIO]) -> None:
    for file in files:
        file.flush()
        os.fdatasync(file.fileno())


def _write(files: Sequence[BinaryIO], pieces: Sequence[memoryview]) -> None:
    for file, piece in zip(files, pieces, strict=True):
        file.write(piece)
