"""`ratfast average`: several checkpoints into one. Imports no torch unless an input needs it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ratfast.averaging.files import average_files
from ratfast.averaging.rules import BUFFERS
from ratfast.checkpoints.header import PICKLED_SUFFIXES, is_safetensors, read_header
from ratfast.cli.context import CONTEXT
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError

_LARGE = 1 << 30  # bytes of input from which progress is shown


@click.command(context_settings=CONTEXT)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="The safetensors file to write; may be an input."
)
@click.option(
    "--method",
    type=click.Choice(["uniform", "weighted"]),
    help="uniform: the mean; weighted: the sum weighted by --weights.  [default: by --weights]",
)
@click.option("--weights", metavar="W1,W2,...", help="A number for each checkpoint; they need not sum to 1.")
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
def average(
    checkpoints: tuple[str, ...],
    output: str,
    method: str | None,
    weights: str | None,
    buffers: str,
    dtype: str | None,
) -> None:
    """Average checkpoints of one architecture into a safetensors file.

    Each CHECKPOINT is a safetensors file or one of torch.save (.pt, .pth, .pth.tar, .bin, .pkl), from which
    only tensors are read. The result notes the inputs, their SHA-256 and their weights. It appears under its
    name once it is complete.
    """
    if method == "weighted" and weights is None:
        raise InputError("--method weighted needs --weights, one number for each checkpoint")
    if method == "uniform" and weights is not None:
        raise InputError("--method uniform takes no --weights")
    if Path(output).suffix.lower() in PICKLED_SUFFIXES:
        raise InputError(f"{output} would be a safetensors file: give it a name that ends in .safetensors")
    numbers = None if weights is None else _parse_weights(weights)
    try:
        with _progress(checkpoints) as progress:
            written = average_files(
                checkpoints, output, weights=numbers, buffers=buffers, dtype=dtype, progress=progress
            )
    except OSError as error:
        raise click.ClickException(f"{output} could not be written: {error.strerror or error}") from error
    models = f"{written.models} checkpoint{'s' if written.models != 1 else ''}"
    click.echo(
        f"wrote {written.path}: average of {models}, {written.tensors} tensors, {written.nbytes / 1e6:.1f} MB"
    )


def _parse_weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights is {text!r}, expected numbers separated by commas") from None


@contextlib.contextmanager
def _progress(paths: tuple[str, ...]) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr where there is much to read, else nothing."""
    sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
    if sum(sizes) < _LARGE or not all(is_safetensors(path) for path in paths):
        yield None
        return
    label = f"averaging {len(paths)} checkpoints"
    total = read_header(paths[0]).layout.nbytes
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update
