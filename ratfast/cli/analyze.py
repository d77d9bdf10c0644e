"""`ratfast analyze`: what checkpoints look like, and what their networks predict. Imports no torch by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from ratfast.analysis.distances import Geometry, distances_of_files
from ratfast.cli import networks
from ratfast.cli.context import CONTEXT
from ratfast.cli.matrices import header, listing, matrix


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
    yield from listing(found.names)
    reference = "the mean" if found.reference == "mean" else found.reference
    yield ""
    yield header(len(found.names))
    yield from matrix("norm", found.norms[None])
    yield from matrix(f"distance to {reference}", found.from_reference[None])
    yield from matrix("distances", found.distances)
    yield from matrix(f"cosines of the differences to {reference}", found.cosines)
    yield ""
    yield f"locality (largest squared distance to the mean)  {found.locality:.6g}"


for _command in (
    networks.curve,
    networks.diversity,
    networks.growth,
    networks.ensemble,
    networks.domains,
    networks.run,
):
    analyze.add_command(_command)
