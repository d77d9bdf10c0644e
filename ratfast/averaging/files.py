"""Checkpoint files combined into a file, by any method; without torch where native code is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast import native
from ratfast.averaging.combination import Combination, Mix, Rows
from ratfast.averaging.file_pool import FilePool, common_strings
from ratfast.averaging.methods import METHODS, find_method, has_base, plan
from ratfast.averaging.rules import check_buffers, check_weights
from ratfast.averaging.streaming import Hashing, Progress, write_outputs
from ratfast.checkpoints import (
    atomic_files,
    find_checkpoints,
    is_safetensors,
    open_checkpoint,
    read_metadata,
)
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.version import __version__

FileName = str | os.PathLike[str]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: the file; of several outputs the first.
        models: how many checkpoints went into it, a base and those of weight 0 not counted.
        tensors: how many it holds.
        nbytes: their size.
        paths: all files.
    """

    path: str
    models: int
    tensors: int
    nbytes: int
    paths: tuple[str, ...] = ()


def average_files(
    paths: FileName | Sequence[FileName],
    output: FileName,
    *,
    weights: Sequence[float] | None = None,
    buffers: str = "error",
    dtype: str | None = None,
    method: str | None = None,
    selection: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Averages checkpoints into a safetensors file, by the rules of `ratfast.average`.

    `merge_files` with the method "uniform", or "weighted" where weights are given.

    Args:
        paths: the checkpoints, at least one: files, folders and patterns, as `find_checkpoints` takes them.
        output: as in `merge_files`.
        weights: one finite number for each checkpoint, not required to sum to 1; by default 1 / N.
        buffers: as in `merge_files`.
        dtype: as in `merge_files`.
        method: how checkpoints and weights were chosen, for the metadata; by default "uniform" or "weighted".
        selection: what else the metadata are to say of that choice, as JSON-able values.
        progress: as in `merge_files`.

    Raises:
        InputError: as in `merge_files`.
        OSError: as in `merge_files`.
    """
    options = {} if weights is None else {"weights": weights}
    job = _Job(
        paths,
        (),
        "weighted",
        options,
        buffers,
        dtype,
        method or ("weighted" if options else "uniform"),
        selection,
    )
    return job.write(output, progress)


def merge_files(
    paths: FileName | Sequence[FileName],
    output: FileName,
    *,
    method: str,
    buffers: str = "error",
    dtype: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Written:
    """Combines checkpoints into a safetensors file by a method of `ratfast.averaging.methods`.

    The files are mapped and read piece by piece, in little memory and without torch. Where the native module is
    missing, torch does the work. The numbers are the same either way, and those of `ratfast.merge`; but for "slerp"
    and "model-stock", whose angles come from sums that torch adds up in another order: the last place may differ.

    The output's metadata record the method with its options, the policy for buffers, this library's version, and the
    name and SHA-256 of every input, so that `again` makes the same file once more; what all inputs say about their
    model is kept.

    Args:
        paths: the checkpoints, at least one: files, folders and patterns, as `find_checkpoints` takes them.
        output: the file to create or replace once all is written. It may be one of the inputs, which are read to the
            end before the name passes to the new file. Where the method makes several outputs, each gets the point
            of its path into its name: for "{alpha}" in the name, or else before the suffix.
        method: a name of `ratfast.averaging.methods.METHODS`.
        buffers: "keep" the first checkpoint's; "average" them; or "error": keep them, but stop where they differ.
        dtype: the type of floating tensors in the output; by default each keeps the first checkpoint's.
        progress: called with the number of bytes of output done since the last call.
        options: the method's own; `base` as an index of `paths` or as a file, which then comes first; for "fisher"
            also `fisher`: the files of the diagonals, in the order of `paths`.

    Raises:
        InputError: a file is malformed, the files or options do not fit together, a result is not finite, or the
            output cannot be written there.
        OSError: writing failed, such as on a full disk; nothing is left behind.
    """
    method = method.replace("_", "-")
    find_method(method)
    paths = find_checkpoints(paths)
    if isinstance(options.get("base"), (str, os.PathLike)):
        if not has_base(method):
            raise InputError(f"the method {method} takes no base")
        paths, options = [options["base"], *paths], {**options, "base": 0}
    fisher = options.pop("fisher", None)
    if fisher is not None and method != "fisher":
        raise InputError(f"the method {method} takes no Fisher diagonals")
    diagonals = find_checkpoints(fisher or ())
    if method == "fisher" and len(diagonals) != len(paths):
        raise InputError(
            f"fisher needs a file of the Fisher diagonal of each of {len(paths)} checkpoints, got {len(diagonals)}"
        )
    return _Job(paths, diagonals, method, options, buffers, dtype, method).write(output, progress)


def again(made: FileName, output: FileName, *, progress: Progress | None = None) -> Written:
    """Makes a file of this library's averaging once more, from what its metadata record; the bytes are the same.

    Args:
        made: a file that `average_files` or `merge_files` wrote.
        output: the file to create or replace.
        progress: as in `merge_files`.

    Raises:
        InputError: the file was not made so, or an input is missing or has changed since; names it.
        OSError: writing failed; nothing is left behind.
    """
    note = read_metadata(made)
    try:
        label, inputs, diagonals = note["method"], note["inputs"], note.get("fisher", [])
        paths = [str(entry["file"]) for entry in inputs]
        options = dict(note["options"]) if "options" in note else {"weights": note["weights"]}
        known = {str(entry["file"]): entry["sha256"] for entry in [*inputs, *diagonals]}
        buffers, dtype = note["buffers"], note.get("dtype")
        others = [str(entry["file"]) for entry in diagonals]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{made} does not record how it was made, so it cannot be made again") from None
    files = list(known)
    with Hashing([open_checkpoint(path) for path in files]) as hashing:
        digests = hashing.digests()
    changed = [path for path, digest in zip(files, digests, strict=True) if digest != known[path]]
    if changed:
        raise InputError(f"{' and '.join(changed)} changed since {made} was made of it (by its SHA-256)")
    method = label if "options" in note else "weighted"
    if method not in METHODS:
        raise InputError(f"{made} was made by the method {label!r}, which this version does not have")
    job = _Job(paths, others, method, options, buffers, dtype, label, note.get("selection"))
    return job.write(output, progress, only=note.get("output"))


@dataclass
class _Job:
    """What is to be made of which files."""

    paths: Sequence[FileName]
    diagonals: Sequence[FileName]
    method: str
    options: Mapping[str, Any]
    buffers: str
    dtype: str | None
    label: str  # the method's name in the metadata
    selection: Mapping[str, Any] | None = None  # what else they say of the choice of weights

    def write(self, output: FileName, progress: Progress | None, only: int | None = None) -> Written:
        check_buffers(self.buffers)
        if not self.paths:
            raise InputError("there are no checkpoints to average")
        if self.dtype is not None and (self.dtype not in BY_NAME or not BY_NAME[self.dtype].is_floating):
            raise InputError(f"dtype is {self.dtype}, expected float64, float32, float16 or bfloat16")
        if self.method == "weighted":
            check_weights(
                self.options.get("weights"), len(self.paths)
            )  # before the files, which may be large
        core = native.load_core()
        if core is None:
            return self._with_torch(output, only, progress)
        files = [open_checkpoint(path) for path in (*self.paths, *self.diagonals)]
        with Hashing(files) as hashing:
            pool = FilePool(
                files, core, buffers=self.buffers, dtype=self.dtype, diagonals=len(self.diagonals)
            )
            own = files[: len(self.paths)]
            models = [file.metadata.get("model") if is_safetensors(file.path) else None for file in own]
            combination, outputs, notes = self._plan(pool, output, only, models)
            write_outputs(pool, combination, outputs, notes, hashing, progress)
        tensors = len(pool.layout) + len(pool.aliases)
        return self._written(combination, outputs, tensors, pool.layout.nbytes)

    def _plan(
        self, rows: Rows, output: FileName, only: int | None, models: Sequence[Any]
    ) -> tuple[Combination, list[str], Callable[[int, list[str]], dict[str, Any]]]:
        """The combination, the outputs' names, and their metadata given the inputs' SHA-256.

        Args:
            rows: the pool.
            output: the name that was asked for.
            only: the output to make, of several; None for all.
            models: what each file says of its model, which is kept where all say the same.
        """
        combination = plan(rows, self.method, dict(self.options))
        numbers = list(range(combination.outputs)) if only is None else [only]
        if only is not None:
            combination = combination.output(only)
        outputs = [os.fspath(output)] if only is not None else output_names(output, combination.points)
        model = models[0] if all(model == models[0] for model in models) else None

        def notes(k: int, digests: list[str]) -> dict[str, Any]:
            files = [
                {"file": os.fspath(path), "sha256": digest}
                for path, digest in zip([*self.paths, *self.diagonals], digests, strict=True)
            ]
            note: dict[str, Any] = {"kind": "average", "method": self.label}
            if self._is_plain():
                note["weights"] = list(combination.weights[0])
            else:
                note["options"] = _plain(self.options)
            note["inputs"] = files[: len(self.paths)]
            if self.diagonals:
                note["fisher"] = files[len(self.paths) :]
            note["buffers"] = self.buffers
            if self.dtype is not None:
                note["dtype"] = self.dtype
            if len(outputs) > 1 or only is not None:
                note |= {"output": numbers[k], "point": combination.points[k]}
            if self.selection is not None:
                note["selection"] = dict(self.selection)
            note["version"] = __version__
            return note if model is None else {**note, "model": model}

        return combination, outputs, notes

    def _is_plain(self) -> bool:
        """Whether the weights say all."""
        return self.method == "weighted" and not self.options.get("weights_for")

    def _with_torch(self, output: FileName, only: int | None, progress: Progress | None) -> Written:
        from ratfast.averaging.merging import result_dtypes
        from ratfast.averaging.pool import Pool
        from ratfast.checkpoints.tensors import save_into

        files = [*self.paths, *self.diagonals]
        pool = Pool.open(files, "cpu", buffers=self.buffers, diagonals=len(self.diagonals))
        models = [read_metadata(path).get("model") for path in self.paths]
        combination, outputs, notes = self._plan(pool, output, only, models)
        results = pool.combine(combination, dtypes=result_dtypes(self.paths[0], pool, self.dtype))
        pool.check_finite(results, combination)
        opened = [open_checkpoint(path) for path in files]
        with Hashing(opened) as hashing:
            digests = hashing.digests()
        strings = common_strings(opened[: len(self.paths)])
        with atomic_files(outputs) as written:
            for k, (file, tensors) in enumerate(zip(written, results, strict=True)):
                save_into(file, tensors, notes(k, digests), strings=strings)
        nbytes = sum(tensor.nbytes for tensor in results[0].values())
        if progress is not None:
            progress(nbytes)
        return self._written(combination, outputs, len(results[0]), nbytes)

    def _written(self, combination: Combination, outputs: list[str], tensors: int, nbytes: int) -> Written:
        steps = {id(step): step for step in combination.steps.values()}.values() or [Mix(combination.weights)]
        counted = {n for step in steps for n in combination.models(step) if n < len(self.paths)}
        if has_base(self.method):
            counted.discard(self.options.get("base", 0))
        return Written(outputs[0], len(counted), tensors, nbytes, tuple(outputs))


def output_names(output: FileName, points: Sequence[float]) -> list[str]:
    """The files of a method's outputs: `output` itself, or with the point of each in its name.

    Raises:
        InputError: two points would get one name.
    """
    text = os.fspath(output)
    if len(points) < 2:
        return [text.replace("{alpha}", f"{points[0]:.6g}") if points else text]
    path = Path(text)
    pattern = text if "{alpha}" in text else str(path.with_name(f"{path.stem}-{{alpha}}{path.suffix}"))
    names = [pattern.replace("{alpha}", f"{point:.6g}") for point in points]
    if len(set(names)) < len(names):
        raise InputError(
            f"two of the points {', '.join(map(str, points))} are the same, expected different ones"
        )
    return names


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""

    def value(option: Any) -> Any:
        if isinstance(option, Mapping):
            return {str(key): value(item) for key, item in option.items()}
        if hasattr(option, "tolist"):  # of numpy or torch
            return option.tolist()
        if isinstance(option, (str, int, float, bool, type(None))):
            return option
        return [value(item) for item in option]

    return {name: value(option) for name, option in options.items()}
