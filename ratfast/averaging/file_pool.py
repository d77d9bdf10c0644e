"""A pool of checkpoint files, which stay where they are: mapped, checked, and read piece by piece. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ratfast.averaging.combination import Column, Combination, Step, grouped
from ratfast.averaging.rules import (
    bool_buffer,
    buffers_differ,
    check_buffers,
    check_layouts,
    not_finite,
    other_kind,
)
from ratfast.checkpoints import Checkpoint
from ratfast.checkpoints.mapped import let_go
from ratfast.checkpoints.names import is_buffer_name, is_statistic_name
from ratfast.dtypes import BY_NAME
from ratfast.layout import Entry, Layout, TensorSpec

if TYPE_CHECKING:
    import numpy as np

_COMPARED = 1 << 20  # bytes that are compared at a time
_BATCH_BYTES = 64 << 20  # of tensors of one model whose Gram matrices are computed in one call

_LEAST_RELEASE = 1 << 16  # bytes from which it pays to give pages back


class Span(NamedTuple):
    """Some elements of a tensor.

    Attributes:
        name: the tensor's.
        start: the first element.
        count: how many.
    """

    name: str
    start: int
    count: int


class FilePool:
    """N checkpoint files as the rows of a matrix; implements `ratfast.averaging.combination.Rows`.

    Args:
        files: at least one.
        core: the module of `ratfast.native.load_core`.
        buffers: "keep", "average" or "error".
        dtype: the type of floating tensors in the result; by default each keeps the first file's.
        diagonals: how many of the last files are no models and need to hold the parameters only.

    Attributes:
        layout: of the result, whose row is a file's data; tensors that share memory in all files stand there once.
        aliases: further names of tensors that share memory in all files.
        names: the files.
        parameters: names of floating tensors that are no buffers.

    Raises:
        InputError: the files do not fit together, or their buffers differ.
    """

    def __init__(
        self,
        files: Sequence[Checkpoint],
        core: ModuleType,
        *,
        buffers: str = "error",
        dtype: str | None = None,
        diagonals: int = 0,
    ):
        check_buffers(buffers)
        self.names = tuple(str(file.path) for file in files)
        self.files = list(files)
        self._core = core
        self._policy = buffers
        self._models = len(files) - diagonals
        self.aliases = {
            name: target
            for name, target in self.files[0].aliases.items()
            if all(file.aliases.get(name) == target for file in self.files[: self._models])
        }
        first = self._expanded(0)
        of_buffers = {entry.name for entry in first if is_buffer_name(entry.name, entry.dtype)}
        self.parameters = tuple(entry.name for entry in first if entry.name not in of_buffers)
        check_layouts(
            [first, *(self._expanded(n) for n in range(1, self._models))], self.names[: self._models]
        )
        self._check_diagonals(first)
        self._check_kinds(first)
        self._buffers = of_buffers
        if buffers == "keep":
            self._warn_of_statistics([name for name in first.names if is_statistic_name(name)])
        if buffers == "error":
            ranges = _ranges(entry for entry in first if entry.name in of_buffers)
            for n in range(1, self._models):
                if self._same_bytes(ranges, n):
                    continue
                differing = [e.name for e in first if e.name in of_buffers and not self._equal(e.name, n)]
                if differing:
                    raise buffers_differ(differing, self.names[n], self.names[0])
        self.layout = Layout.pack(
            TensorSpec(
                entry.name,
                entry.shape,
                dtype if dtype is not None and BY_NAME[entry.dtype].is_floating else entry.dtype,
                is_buffer=entry.name in of_buffers,
            )
            for entry in first
        )

    def __len__(self) -> int:
        return len(self.files)

    def nbytes(self) -> int:
        """Size of all files' tensors, in bytes."""
        return sum(file.layout.nbytes for file in self.files)

    def strings(self) -> dict[str, str]:
        """What the headers of all models say alike, besides this library's note."""
        return common_strings(self.files[: self._models])

    def grams(self) -> np.ndarray:
        """(T, N, N) float64: inner products of all pairs of models, for each parameter."""
        import numpy as np

        parts = [np.zeros((0, len(self), len(self)))]
        for names in self._batches():
            spans = [self._whole(name) for name in names]
            sources, types = self._sources(range(len(self)), spans)
            parts.append(np.asarray(self._core.gram(sources, types, threads())))
        return np.concatenate(parts)

    def kth_magnitudes(
        self, model: int, base: int | None, counts: Sequence[int], *, together: bool
    ) -> np.ndarray:
        """The k-th largest magnitudes, as `Rows.kth_magnitudes` says."""
        import numpy as np

        spans = [self._whole(name) for name in self.parameters]
        [sources], [types] = self._sources([model], spans)
        bases, base_types = None, None
        if base is not None:
            [bases], [base_types] = self._sources([base], spans)
        numbers = np.array(counts, np.int64)
        found = self._core.kth_magnitudes(sources, bases, types, base_types, numbers, together, threads())
        return np.asarray(found, np.float32)

    def compute(self, combination: Combination, spans: Sequence[Span], outputs: Sequence[memoryview]) -> None:
        """Computes some elements of every output.

        Args:
            combination: how.
            spans: which.
            outputs: for each of the K outputs writable bytes, into which the spans go one after the other, in the
                types of `layout`.

        Raises:
            InputError: a result is not finite, or truth values that differ are to be averaged.
        """
        summed: list[tuple[str, Span, int]] = []
        offset = 0
        for span in spans:
            entry = self.layout[span.name]
            end = offset + span.count * BY_NAME[entry.dtype].itemsize
            if span.name in self._buffers and (
                self._policy != "average" or not BY_NAME[entry.dtype].is_floating
            ):
                for k, memory in enumerate(outputs):
                    self._fill(span, memory[offset:end], combination.weights[k])
            else:
                summed.append((span.name, span, offset))
            offset = end
        for step, items in grouped(summed, combination):
            group = [span for _, span, _ in items]
            targets = []
            for memory in outputs:
                pieces = []
                for name, span, start in items:
                    pieces.append(
                        memory[start : start + span.count * BY_NAME[self.layout[name].dtype].itemsize]
                    )
                targets.append(pieces)
            if not self._run(step, combination, group, targets):
                raise self._culprit(combination, group, targets)

    def let_go(self, spans: Sequence[Span]) -> None:
        """Takes spans that will not be read again out of this process's memory, where they are mapped."""
        for n in range(len(self)):
            [pieces], _ = self._sources([n], spans)
            for piece in pieces:
                if piece.nbytes >= _LEAST_RELEASE:
                    let_go(piece)

    def _run(
        self, step: Step, combination: Combination, spans: list[Span], targets: list[list[memoryview]]
    ) -> bool:
        """One call of a kernel; whether all its results are finite."""
        out_types = [self.layout[span.name].dtype for span in spans]
        if not isinstance(step, Column):
            models = combination.models(step)
            sources, types = self._sources(models, spans)
            weights = [[row[n] for n in models] for row in step.weights]
            return self._core.mix(targets, sources, out_types, types, weights, threads())
        import numpy as np

        sources, types = self._sources(step.models, spans)
        bases, base_types = None, None
        if step.base is not None:
            [bases], [base_types] = self._sources([step.base], spans)
        steps = [combination.steps[span.name] for span in spans]
        return self._core.combine(
            targets[0],
            sources,
            bases,
            out_types,
            types,
            base_types,
            step.kind,
            np.array(step.weights),
            None if step.thresholds is None else np.array([own.thresholds for own in steps], np.float64),
            None if step.densities is None else np.array(step.densities),
            None if step.densities is None else [own.key for own in steps],
            None if step.streams is None else list(step.streams),
            [span.start for span in spans],
            step.seed,
            step.scale,
            step.normalize,
            threads(),
        )

    def _sources(
        self, models: Iterable[int], spans: Sequence[Span]
    ) -> tuple[list[list[memoryview]], list[list[str]]]:
        """The bytes of spans in some of the files, and their types."""
        sources, types = [], []
        known: tuple[Layout, list[tuple[int, int]], list[str]] | None = None
        for n in models:
            file = self.files[n]
            if file.row is not None and not file.aliases:
                if known is None or known[0] is not file.layout:  # most files have one layout
                    known = (file.layout, *_places(file.layout, spans))
                row = file.row
                sources.append([row[begin:end] for begin, end in known[1]])
                types.append(known[2])
                continue
            pieces, dtypes = [], []
            for name, start, count in spans:
                name = file.aliases.get(name, name)
                dtype = file.layout[name].dtype
                itemsize = BY_NAME[dtype].itemsize
                pieces.append(file.bytes_of(name)[start * itemsize : (start + count) * itemsize])
                dtypes.append(dtype)
            sources.append(pieces)
            types.append(dtypes)
        return sources, types

    def _warn_of_statistics(self, names: Sequence[str]) -> None:
        from ratfast.averaging.statistics import warn_if_statistics_differ

        def statistics(file: Checkpoint) -> dict[str, np.ndarray]:
            layout, aliases = file.layout, file.aliases
            return {
                name: decode(file.bytes_of(name), layout[aliases.get(name, name)].dtype) for name in names
            }

        warn_if_statistics_differ([statistics(file) for file in self.files[: self._models]], self.names)

    def _fill(self, span: Span, target: memoryview, weights: Sequence[float]) -> None:
        """A span that is no floating sum: a buffer that is kept, or integers."""
        dtype = self.layout[span.name].dtype
        [[own]], [[stored]] = self._sources([0], [span])
        if self._policy != "average" or BY_NAME[dtype].is_floating:
            if stored == dtype:
                target[:] = own
            else:
                self._core.mix([[target]], [[own]], [dtype], [[stored]], [[1.0]], 1)
        elif dtype == "bool":
            if not all(self._equal(span.name, n) for n in range(1, self._models)):
                raise bool_buffer(span.name)
            target[:] = own
        else:
            from ratfast.averaging.integers import average_integers

            sources, types = self._sources(range(self._models), [span])
            pieces = [(piece, kind) for [piece], [kind] in zip(sources, types, strict=True)]
            target[:] = average_integers(pieces, weights[: self._models], dtype)

    def _culprit(
        self, combination: Combination, spans: list[Span], targets: list[list[memoryview]]
    ) -> Exception:
        """The error that names the tensor and the file behind a result that is not finite."""
        import numpy as np

        for t, span in enumerate(spans):
            dtype = self.layout[span.name].dtype
            bad = ~np.isfinite(np.stack([decode(pieces[t], dtype) for pieces in targets])).all(axis=0)
            if not bad.any():
                continue
            for n in combination.models(combination.step(span.name)):
                [[piece]], [[stored]] = self._sources([n], [span])
                if not np.isfinite(decode(piece, stored)[bad]).all():
                    return not_finite(span.name, self.names[n], None)
            return not_finite(span.name, None, dtype)
        raise AssertionError("every result is finite")

    def _expanded(self, n: int) -> Layout:
        """The tensors of a file, names that are aliases not in all files among them."""
        file = self.files[n]
        extra = [name for name in file.aliases if name not in self.aliases]
        if not extra:
            return file.layout
        entries = [(entry.name, entry) for entry in file.layout]
        entries += [(name, file.layout[file.aliases[name]]) for name in extra]
        return Layout.pack(TensorSpec(name, entry.shape, entry.dtype) for name, entry in entries)

    def _check_diagonals(self, first: Layout) -> None:
        wanted = Layout.pack(
            TensorSpec(name, first[name].shape, first[name].dtype) for name in self.parameters
        )
        for n in range(self._models, len(self)):
            there = self._expanded(n)
            found = Layout.pack(
                TensorSpec(name, there[name].shape, there[name].dtype)
                for name in wanted.names
                if name in there
            )
            check_layouts([wanted, found], [self.names[0], self.names[n]])

    def _check_kinds(self, first: Layout) -> None:
        """Sums are of floating types in every file, and integers that are averaged are integers in every file."""
        for n in range(1, len(self)):
            file = self.files[n]
            if file.layout is self.files[0].layout:
                continue
            for entry in first:
                name = file.aliases.get(entry.name, entry.name)
                if name not in file.layout:
                    continue
                dtype = file.layout[name].dtype
                floating = BY_NAME[entry.dtype].is_floating
                if BY_NAME[dtype].is_floating != floating and (floating or self._policy == "average"):
                    raise other_kind(entry.name, dtype, self.names[n], entry.dtype, self.names[0])

    def _same_bytes(self, ranges: Sequence[tuple[int, int]], other: int) -> bool:
        """Whether ranges of the rows of two files of one layout hold the same: quicker than name by name."""
        one, two = self.files[0], self.files[other]
        if one.row is None or two.row is None or one.layout != two.layout:
            return False
        return all(_same(one.row[start:end], two.row[start:end]) for start, end in ranges)

    def _equal(self, name: str, other: int) -> bool:
        """Whether a tensor of another file is that of the first; NaN equals NaN."""
        whole = Span(name, 0, self.files[0].layout[self.files[0].aliases.get(name, name)].numel)
        [[first], [second]], [[one], [two]] = self._sources([0, other], [whole])
        if one == two:
            if _same(first, second):
                return True
            if not BY_NAME[one].is_floating:
                return False
        import numpy as np

        return np.array_equal(decode(first, one), decode(second, two), equal_nan=True)

    def _whole(self, name: str) -> Span:
        return Span(name, 0, self.layout[name].numel)

    def _batches(self) -> list[list[str]]:
        """The parameters, in runs of a few megabytes for each model."""
        batches: list[list[str]] = []
        size = _BATCH_BYTES
        for name in self.parameters:
            if size >= _BATCH_BYTES:
                batches.append([])
                size = 0
            batches[-1].append(name)
            size += self.layout[name].nbytes
        return batches


def common_strings(files: Sequence[Checkpoint]) -> dict[str, str]:
    """What the headers of all files say alike, besides this library's note."""
    return {
        key: value
        for key, value in files[0].strings.items()
        if all(file.strings.get(key) == value for file in files)
    }


def _ranges(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    """The bytes of a row that entries take, neighbours together."""
    found: list[tuple[int, int]] = []
    for entry in entries:
        if found and found[-1][1] == entry.offset:
            found[-1] = (found[-1][0], entry.offset + entry.nbytes)
        else:
            found.append((entry.offset, entry.offset + entry.nbytes))
    return found


def _places(layout: Layout, spans: Sequence[Span]) -> tuple[list[tuple[int, int]], list[str]]:
    """Where spans begin and end in a row of the layout, in bytes, and their types."""
    places, types = [], []
    for name, start, count in spans:
        entry = layout[name]
        itemsize = BY_NAME[entry.dtype].itemsize
        begin = entry.offset + start * itemsize
        places.append((begin, begin + count * itemsize))
        types.append(entry.dtype)
    return places, types


def _same(one: memoryview, other: memoryview) -> bool:
    """Whether bytes are equal. Python compares those of mappings one by one, but copies of them at once."""
    return one.nbytes == other.nbytes and all(
        bytes(one[start : start + _COMPARED]) == bytes(other[start : start + _COMPARED])
        for start in range(0, one.nbytes, _COMPARED)
    )


def threads() -> int:
    """How many threads to use: OMP_NUM_THREADS, or the processors this process may run on."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else len(os.sched_getaffinity(0))


def decode(data: memoryview, dtype: str) -> np.ndarray:
    """The numbers in a tensor's bytes, as float64."""
    from ratfast.checkpoints.elements import decoded

    return decoded(data, dtype).astype("float64")
