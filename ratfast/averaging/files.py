"""Files averaged into a file: mapped, summed in pieces and written as they come, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ratfast import native
from ratfast.averaging.rules import (
    bool_buffer,
    buffers_differ,
    check_buffers,
    check_layouts,
    check_weights,
)
from ratfast.checkpoints import MappedFile, is_safetensors, read_metadata, sha256, write_chunks
from ratfast.checkpoints.names import is_buffer_name
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Entry, Layout, TensorSpec
from ratfast.version import __version__

_PIECE_BYTES = 32 << 20  # of output that is computed, then written, at a time

FileName = str | os.PathLike[str]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """What `average_files` wrote.

    Attributes:
        path: the file.
        models: how many checkpoints went into it.
        tensors: how many it holds.
        nbytes: their size.
    """

    path: str
    models: int
    tensors: int
    nbytes: int


def average_files(
    paths: Sequence[FileName],
    output: FileName,
    *,
    weights: Sequence[float] | None = None,
    buffers: str = "error",
    dtype: str | None = None,
    method: str | None = None,
    progress: Progress | None = None,
) -> Written:
    """Averages checkpoints into a safetensors file, by the rules of `ratfast.average`.

    Safetensors files are mapped and summed piece by piece, in little memory and without torch. Where one is
    of another kind, or the native module is missing, torch does the work.

    The output's metadata record the method, the weights, the policy for buffers, this library's version, and
    the name and SHA-256 of every input; what all inputs say about their model is kept.

    Args:
        paths: the checkpoints; at least one.
        output: the file to create or replace once all is written. It may be one of the inputs, which are read
            to the end before the name passes to the new file.
        weights: one finite number for each checkpoint, not required to sum to 1; by default 1 / N.
        buffers: "keep", "average" or "error".
        dtype: the type of floating tensors in the output; by default each keeps the first checkpoint's.
        method: how checkpoints and weights were chosen, for the metadata; by default "uniform" or "weighted".
        progress: called with the number of bytes of output done since the last call.

    Raises:
        InputError: a file is malformed, the files do not fit together, or the output cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
    """
    check_buffers(buffers)
    if not paths:
        raise InputError("there are no checkpoints to average")
    if dtype is not None and (dtype not in BY_NAME or not BY_NAME[dtype].is_floating):
        raise InputError(f"dtype is {dtype}, expected float64, float32, float16 or bfloat16")
    numbers = check_weights(weights, len(paths))
    method = method or ("uniform" if weights is None else "weighted")
    core = native.load_core() if all(is_safetensors(path) for path in paths) else None
    if core is None:
        return _with_torch(paths, output, method, numbers, buffers, dtype)
    job = _Job([MappedFile(path) for path in paths], numbers, buffers, dtype, core)
    metadata = _metadata(paths, method, numbers, buffers)
    write_chunks(output, job.layout, job.chunks(progress), metadata)
    return Written(os.fspath(output), len(paths), len(job.layout), job.layout.nbytes)


def threads() -> int:
    """How many threads to use: OMP_NUM_THREADS, or the processors this process may run on."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else len(os.sched_getaffinity(0))


class _Job:
    """An average of mapped files, checked and planned."""

    def __init__(
        self, files: list[MappedFile], weights: list[float], buffers: str, dtype: str | None, core: ModuleType
    ):
        self._files = files
        self._weights = weights
        self._policy = buffers
        self._core = core
        self._counted = [n for n, weight in enumerate(weights) if weight != 0.0] or [0]
        labels = [str(file.header.path) for file in files]
        check_layouts([file.header.layout for file in files], labels)
        first = files[0].header.layout
        self._buffers = {entry.name for entry in first if is_buffer_name(entry.name, entry.dtype)}
        self._check_kinds(labels)
        if buffers == "error":
            for file, label in zip(files[1:], labels[1:], strict=True):
                differing = [
                    name for name in first.names if name in self._buffers and not self._equal(name, file)
                ]
                if differing:
                    raise buffers_differ(differing, label, labels[0])
        self.layout = Layout.pack(
            TensorSpec(
                entry.name,
                entry.shape,
                dtype if dtype is not None and BY_NAME[entry.dtype].is_floating else entry.dtype,
                is_buffer=entry.name in self._buffers,
            )
            for entry in first
        )

    def chunks(self, progress: Progress | None) -> Iterator[np.ndarray]:
        """The pieces of the result's row, in order; each is valid until the next is asked for."""
        memory = np.empty(min(_PIECE_BYTES, self.layout.nbytes), np.uint8)
        batch: list[tuple[Entry, int, int]] = []
        filled = 0
        for entry in self.layout:
            itemsize = BY_NAME[entry.dtype].itemsize
            start = 0
            while start < entry.numel:
                if memory.size - filled < itemsize:
                    yield self._compute(batch, memory[:filled], progress)
                    batch, filled = [], 0
                count = min(entry.numel - start, (memory.size - filled) // itemsize)
                batch.append((entry, start, count))
                start += count
                filled += count * itemsize
        if batch:
            yield self._compute(batch, memory[:filled], progress)

    def _compute(
        self, batch: list[tuple[Entry, int, int]], memory: np.ndarray, progress: Progress | None
    ) -> np.ndarray:
        outputs: list[np.ndarray] = []
        sources: list[list[np.ndarray]] = [[] for _ in self._counted]
        out_types: list[str] = []
        in_types: list[list[str]] = [[] for _ in self._counted]
        kept: list[tuple[np.ndarray, Entry, int, int]] = []
        offset = 0
        for entry, start, count in batch:
            nbytes = count * BY_NAME[entry.dtype].itemsize
            target = memory[offset : offset + nbytes]
            offset += nbytes
            one_of_buffers = entry.name in self._buffers
            if not BY_NAME[entry.dtype].is_floating:
                target[:] = self._integers(entry, start, count)
                continue
            if one_of_buffers and self._policy != "average":
                kept.append((target, entry, start, count))
                continue
            outputs.append(target)
            out_types.append(entry.dtype)
            for n, number in enumerate(self._counted):
                piece, name = self._piece(number, entry.name, start, count)
                sources[n].append(piece)
                in_types[n].append(name)
        weights = np.array([[self._weights[number] for number in self._counted]])
        if outputs:
            self._core.mix([outputs], sources, out_types, in_types, weights, threads())
        for target, entry, start, count in kept:
            piece, name = self._piece(0, entry.name, start, count)
            if name == entry.dtype:
                target[:] = piece
            else:
                self._core.mix([[target]], [[piece]], [entry.dtype], [[name]], np.ones((1, 1)), 1)
        if progress is not None:
            progress(memory.size)
        return memory

    def _piece(self, number: int, name: str, start: int, count: int) -> tuple[np.ndarray, str]:
        """Elements of a tensor of one file as bytes, aligned to their type, and the type."""
        file = self._files[number]
        entry = file.header.layout[name]
        itemsize = BY_NAME[entry.dtype].itemsize
        piece = file.bytes_of(entry)[start * itemsize : (start + count) * itemsize]
        aligned = piece.ctypes.data % itemsize == 0
        return (piece if aligned else piece.copy()), entry.dtype

    def _integers(self, entry: Entry, start: int, count: int) -> np.ndarray:
        own, dtype = self._piece(0, entry.name, start, count)
        if self._policy != "average":
            return own
        if entry.dtype == "bool":
            if not all(self._equal(entry.name, file) for file in self._files[1:]):
                raise bool_buffer(entry.name)
            return own
        total = np.zeros(count)
        for number, weight in enumerate(self._weights):
            total += weight * _decode(*self._piece(number, entry.name, start, count))
        return np.rint(total).astype(dtype).view(np.uint8)

    def _check_kinds(self, labels: list[str]) -> None:
        first = self._files[0].header.layout
        for file, label in zip(self._files[1:], labels[1:], strict=True):
            for entry in file.header.layout:
                if BY_NAME[first[entry.name].dtype].is_floating and not BY_NAME[entry.dtype].is_floating:
                    raise InputError(
                        f"{entry.name!r} is {entry.dtype} in {label}, but of a floating type in {labels[0]}"
                    )

    def _equal(self, name: str, other: MappedFile) -> bool:
        """Whether a tensor of another file is that of the first; NaN equals NaN."""
        one, two = self._files[0].header.layout[name], other.header.layout[name]
        first, second = self._files[0].bytes_of(one), other.bytes_of(two)
        if one.dtype == two.dtype:
            if np.array_equal(first, second):
                return True
            if not BY_NAME[one.dtype].is_floating:
                return False
        return np.array_equal(_decode(first, one.dtype), _decode(second, two.dtype), equal_nan=True)


def _decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in a tensor's bytes, as float64."""
    data = np.frombuffer(data.tobytes(), np.uint8)  # aligned
    if dtype == "bfloat16":  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(dtype).astype(np.float64)


def _with_torch(
    paths: Sequence[FileName],
    output: FileName,
    method: str,
    numbers: list[float],
    buffers: str,
    dtype: str | None,
) -> Written:
    from ratfast.averaging.tensors import average
    from ratfast.checkpoints.tensors import save

    tensors = average(paths, numbers, buffers=buffers, dtype=dtype)
    save(tensors, output, _metadata(paths, method, numbers, buffers))
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Written(os.fspath(output), len(paths), len(tensors), nbytes)


def _metadata(paths: Sequence[FileName], method: str, numbers: list[float], buffers: str) -> dict[str, Any]:
    with ThreadPoolExecutor(threads()) as pool:
        digests = list(pool.map(sha256, paths))
    notes = {
        "kind": "average",
        "method": method,
        "weights": numbers,
        "inputs": [
            {"file": os.fspath(path), "sha256": digest} for path, digest in zip(paths, digests, strict=True)
        ],
        "buffers": buffers,
        "version": __version__,
    }
    models = [read_metadata(path).get("model") for path in paths]
    if models[0] is not None and all(model == models[0] for model in models):
        notes["model"] = models[0]
    return notes
