"""`ratfast average`: several checkpoints into one, by any method. Imports no torch where native code is there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ratfast.averaging.files import Written, again, average_files, merge_files
from ratfast.averaging.methods import METHODS, has_base, method_options
from ratfast.averaging.rules import BUFFERS
from ratfast.checkpoints import find_checkpoints, open_checkpoint, read_metadata
from ratfast.checkpoints.header import PICKLED_SUFFIXES
from ratfast.cli.context import CONTEXT
from ratfast.cli.greedy import GREEDY, greedy
from ratfast.cli.selecting import SELECTIONS, selection_options
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError

_LARGE = 1 << 30  # bytes of input from which progress is shown

_SECTIONS = {
    "Weights and places": (
        "weights",
        "weights_for",
        "alpha",
        "points",
        "spread_by",
    ),
    "Task vectors": ("base", "scale", "density", "seed"),
    "Angles and tensors": ("per_tensor",),
    "Fisher-weighted averaging": ("fisher",),
}


class _Grouped(click.Command):
    """A command whose help lists its options by the methods that take them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in options}
        grouped = {name for names in _SECTIONS.values() for name in names}
        chosen = dict.fromkeys(option.name for option in selection_options())
        with formatter.section("Options"):
            formatter.write_dl(
                [r for name, r in records.items() if name not in grouped and name not in chosen]
            )
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([records[name] for name in names])
        if chosen:
            with formatter.section(f"Selections ({', '.join([*SELECTIONS, GREEDY])})"):
                formatter.write_dl([records[name] for name in chosen])


@click.command(cls=_Grouped, context_settings=CONTEXT)
@click.argument("checkpoints", nargs=-1, metavar="CHECKPOINT...", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="The safetensors file to write; may be an input."
)
@click.option(
    "--method",
    metavar="NAME",
    help=f"One of {', '.join([*METHODS, *SELECTIONS, GREEDY])}.  [default: uniform; weighted with --weights]",
)
@click.option(
    "--buffers",
    type=click.Choice(BUFFERS),
    default="error",
    show_default=True,
    help="Batch-norm statistics and integers: keep the first's, average them, or stop where they differ.",
)
@click.option(
    "--dtype",
    type=click.Choice([dtype.name for dtype in BY_NAME.values() if dtype.is_floating]),
    help="Type of the result's numbers.  [default: that of the first checkpoint]",
)
@click.option(
    "--again",
    "made",
    type=click.Path(),
    metavar="FILE",
    help="Make an average once more, as its metadata say, if the inputs are unchanged; takes no other option but -o.",
)
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE",
    help="Merge as a configuration in mergekit's YAML format says; takes no CHECKPOINT and no method.",
)
@click.option(
    "--weights",
    metavar="W1,W2,...",
    help="weighted, task-arithmetic, ties, dare, fisher, geometric: a number for each checkpoint, the base left out; "
    "need not sum to 1.",
)
@click.option(
    "--weights-for",
    multiple=True,
    metavar="PATTERN=W1,W2,...",
    help="weighted: other weights for tensors of these names, such as '*.head.*=0,1'; the last match counts.",
)
@click.option("--alpha", metavar="A1,A2,...", help="wise-ft, slerp: places between the two; a file for each.")
@click.option("--points", type=int, help="path: how many files, the first and last checkpoint included.")
@click.option("--spread-by", type=float, help="fusing: range of the exponent of the random coefficients.")
@click.option(
    "--base",
    type=click.Path(),
    metavar="FILE",
    help="wise-ft, task-arithmetic, model-stock, ties, dare: the pre-trained checkpoint; else the first one.",
)
@click.option("--scale", type=float, help="task-arithmetic, ties, dare: factor of the merged task vector.")
@click.option("--density", type=float, help="ties, dare: share of each task vector that is kept.")
@click.option("--seed", type=int, help="dare, fusing: of the random numbers.")
@click.option(
    "--per-tensor/--whole",
    default=None,
    help="slerp, model-stock, ties: for each tensor by itself, or for all parameters as one vector.",
)
@click.option(
    "--fisher",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="fisher: a Fisher diagonal; one for each checkpoint.",
)
def average(
    checkpoints: tuple[str, ...],
    output: str,
    method: str | None,
    buffers: str,
    dtype: str | None,
    made: str | None,
    config: str | None,
    **values: Any,
) -> None:
    """Average or merge checkpoints of one architecture into a safetensors file.

    Each CHECKPOINT is a file (safetensors, a *.index.json of shards, or one of torch.save, from which only tensors are
    read), a folder of such files, or a pattern; of what is found there, OUTPUT itself and averages that stand among
    other checkpoints are left out. The result notes the inputs, their SHA-256 and the method, and appears under its
    name once it is complete. Where a method makes several files, each gets its place into its name, for {alpha} in
    OUTPUT or before the suffix. The methods' papers and formulas: help(ratfast.averaging.methods).
    """
    if Path(output).suffix.lower() in PICKLED_SUFFIXES:
        raise InputError(f"{output} would be a safetensors file: give it a name that ends in .safetensors")
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    try:
        if made is not None:
            source = click.get_current_context().get_parameter_source("buffers")
            chosen = source is not ParameterSource.DEFAULT
            if checkpoints or method or config or dtype or chosen or given:
                raise InputError("--again takes all but the output from the file, so give nothing else")
            written = again(made, output)
        elif config is not None:
            if checkpoints or method or given:
                raise InputError(
                    "--config takes the method and the checkpoints from the file, so give no others"
                )
            written = _configured(config, output, buffers, dtype)
        else:
            written = _combine(checkpoints, output, method, given, buffers, dtype)
    except OSError as error:
        if error.filename is None:  # what is written has a name
            raise click.ClickException(
                f"a checkpoint could not be read: {error.strerror or error}"
            ) from error
        raise click.ClickException(f"{output} could not be written: {error.strerror or error}") from error
    models = f"{written.models} checkpoint{'s' if written.models != 1 else ''}"
    for path in written.paths:
        click.echo(
            f"wrote {path}: average of {models}, {written.tensors} tensors, {written.nbytes / 1e6:.1f} MB"
        )


average.params.extend(selection_options())


def _combine(
    checkpoints: Sequence[str],
    output: str,
    method: str | None,
    given: dict[str, Any],
    buffers: str,
    dtype: str | None,
) -> Written:
    if not checkpoints:
        raise click.UsageError("Missing argument 'CHECKPOINT...'.")
    method = method or ("weighted" if "weights" in given or "weights_for" in given else "uniform")
    method = method.replace("_", "-")
    paths = _inputs(checkpoints, output)
    if method == GREEDY:
        return greedy(paths, output, given, buffers, dtype)
    if method in SELECTIONS:
        weights = SELECTIONS[method](paths, given)
        with _progress(paths) as progress:
            return average_files(
                paths, output, weights=weights, buffers=buffers, dtype=dtype, method=method, progress=progress
            )
    options = _options(method, given)
    with _progress(paths) as progress:
        return merge_files(
            paths, output, method=method, buffers=buffers, dtype=dtype, progress=progress, **options
        )


def _inputs(names: Sequence[str], output: str) -> list[str]:
    """The checkpoints that are meant. Of what a folder or a pattern finds, two kinds are not, and a line says so.

    They are the output of an earlier call, and averages among other checkpoints: what was written beside its inputs
    would otherwise be averaged with them the next time.
    """
    paths: list[str] = []
    for name in names:
        found = [str(path) for path in find_checkpoints(name)]
        if found != [name]:
            found = _without(found, lambda path: _is_same(path, output), name, "as that is the output")
            found = _without(found, _is_average, name, "as they are averages themselves")
        paths += found
    return paths


def _without(found: list[str], matches: Callable[[str], bool], name: str, why: str) -> list[str]:
    """What is found under a name, but for what matches where something else is left."""
    left_out = [path for path in found if matches(path)]
    if len(left_out) in (0, len(found)):
        return found
    click.echo(f"ratfast: left out of {name}, {why}: {', '.join(left_out)}", err=True)
    return [path for path in found if path not in left_out]


def _is_same(path: str, output: str) -> bool:
    return os.path.exists(output) and os.path.samefile(path, output)


def _is_average(path: str) -> bool:
    try:
        return read_metadata(path).get("kind") == "average"
    except InputError:  # which will be said when it is opened
        return False


def _configured(config: str, output: str, buffers: str, dtype: str | None) -> Written:
    from ratfast.averaging.mergekit import read_mergekit

    merge = read_mergekit(config)
    with _progress([str(path) for path in merge.paths]) as progress:
        return merge_files(
            merge.paths,
            output,
            method=merge.method,
            buffers=buffers,
            dtype=dtype or merge.dtype,
            progress=progress,
            **merge.options,
        )


def _options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method, as the functions in `ratfast.averaging.methods` take them."""
    if method not in METHODS:
        known = ", ".join([*METHODS, *SELECTIONS, GREEDY])
        raise InputError(f"there is no method {method!r}, expected one of {known}")
    known = (*method_options(method), *(("fisher",) if method == "fisher" else ()))
    for name in given:
        if name not in known:
            raise InputError(f"--method {method} takes no --{name.replace('_', '-')}")
    if method == "weighted" and not given:
        raise InputError("--method weighted needs --weights, one number for each checkpoint")
    if method == "fisher" and "fisher" not in given:
        raise InputError("--method fisher needs --fisher FILE for each checkpoint")
    options = dict(given)
    for name in ("weights", "alpha"):
        if name in options:
            options[name] = _numbers(f"--{name}", options[name])
    if "weights_for" in options:
        options["weights_for"] = dict(_pattern(text) for text in options["weights_for"])
    if "fisher" in options:
        options["fisher"] = [str(path) for path in find_checkpoints(options["fisher"])]
    if has_base(method):
        options.setdefault("base", 0)
    return options


def _pattern(text: str) -> tuple[str, list[float]]:
    pattern, equals, numbers = text.rpartition("=")
    if not equals or not pattern:
        raise InputError(f"--weights-for is {text!r}, expected PATTERN=W1,W2,...")
    return pattern, _numbers("--weights-for", numbers)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}, expected numbers separated by commas") from None


@contextlib.contextmanager
def _progress(paths: Sequence[str]) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr where there is much to read, else nothing."""
    sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
    if sum(sizes) < _LARGE:
        yield None
        return
    label = f"averaging {len(paths)} checkpoints"
    with click.progressbar(
        length=open_checkpoint(paths[0]).layout.nbytes, label=label, file=sys.stderr
    ) as bar:
        yield bar.update
