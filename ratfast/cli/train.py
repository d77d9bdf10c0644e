"""`ratfast-train`: from a recipe, flags and overrides to a training. Imports no torch before the training."""

from __future__ import annotations

from typing import Any

import click

from ratfast.cli.context import CONTEXT, RESUMABLE
from ratfast.cli.recipes import other_keys, read_recipe, recipe_arguments
from ratfast.config import Recipe
from ratfast.errors import UnfinishedError
from ratfast.version import __version__


@click.command(context_settings=CONTEXT, epilog=other_keys())
@recipe_arguments
@click.version_option(__version__, prog_name="ratfast-train", message="%(prog)s %(version)s")
def train(recipe: str | None, overrides: tuple[str, ...], **values: str | None) -> None:
    """Train by Model Ratatouille: auxiliary fine-tunings, target fine-tunings, one average.

    Without a recipe and without data, runs a demonstration on real images of digits. The same command again
    continues where it stopped. Flags win over the recipe, --set wins over flags. `ratfast plan` with the same
    arguments says beforehand what there is to do.
    """
    built = read_recipe(recipe, overrides, values)
    click.get_current_context().meta[RESUMABLE] = True
    summary = _run(built)
    from rich.console import Console

    from ratfast.train.report import closing_lines, results_table, rows_table

    console = Console()
    console.print(results_table(summary))
    if len(summary.get("rows", ())) > len(summary["averages"]) + 1:
        console.print(rows_table(summary))
    for line in closing_lines(summary, built.data.dir):
        click.echo(line)


def _run(recipe: Recipe) -> dict[str, Any]:
    """Carries it out; memory that is full is a sentence here, and what is on the disk is kept."""
    from ratfast.train import run
    from ratfast.train.failures import sentence_of

    try:
        return run(recipe)
    except UnfinishedError:
        raise
    except (MemoryError, RuntimeError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        raise UnfinishedError([sentence]) from error
