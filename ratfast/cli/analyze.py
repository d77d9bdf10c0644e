"""`ratfast analyze`: what checkpoints look like. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import click
import numpy as np

from ratfast.analysis.distances import Geometry, distances_of_files
from ratfast.cli.context import CONTEXT

_MOST_COLUMNS = 12  # of a matrix on a screen


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@click.pass_context
def analyze(ctx: click.Context) -> None:
    """Analyse checkpoints of one architecture."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@analyze.command(context_settings=CONTEXT)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", type=click.Path())
@click.option(
    "--base",
    metavar="FILE",
    type=click.Path(),
    help="The pre-trained model: angles are those of the differences to it.  [default: to the mean]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def distances(checkpoints: tuple[str, ...], base: str | None, as_json: bool) -> None:
    """Show norms, distances, angles and locality of checkpoints, and whether they can be averaged.

    Each CHECKPOINT is a file, a folder of files, or a pattern. Buffers are left out. A warning says where two
    checkpoints are as far apart as independent networks are, so that they seem not to come from one pre-training.
    """
    found = distances_of_files(checkpoints, base)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        for line in _lines(found):
            click.echo(line)
    warning = found.warning()
    if warning is not None:
        click.echo(f"ratfast: warning: {warning}", err=True)


def _lines(found: Geometry) -> Iterator[str]:
    count = len(found.names)
    for index, name in enumerate(found.names):
        yield f"{index + 1:>3}  {name}"
    reference = "the mean" if found.reference == "mean" else found.reference
    yield ""
    yield "model  " + _row([str(index + 1) for index in range(min(count, _MOST_COLUMNS))])
    yield from _matrix("norm", found.norms[None])
    yield from _matrix(f"distance to {reference}", found.from_reference[None])
    yield from _matrix("distances", found.distances)
    yield from _matrix(f"cosines of the differences to {reference}", found.cosines)
    yield ""
    yield f"locality (largest squared distance to the mean)  {found.locality:.6g}"


def _matrix(title: str, values: np.ndarray) -> Iterator[str]:
    yield title
    if values.shape[1] > _MOST_COLUMNS:
        pairs = values[0] if len(values) == 1 else values[np.triu_indices(len(values), 1)]
        yield f"       from {pairs.min():.4g} to {pairs.max():.4g}, mean {pairs.mean():.4g} (all with --json)"
        return
    for index, line in enumerate(values):
        label = "" if len(values) == 1 else str(index + 1)
        yield f"{label:>5}  " + _row([f"{value:.4g}" for value in line])


def _row(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>9}" for cell in cells)
