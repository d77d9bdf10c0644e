"""`ratfast report`: DomainBed's tables of a folder of runs, and a page about trainings."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ratfast.cli.context import CONTEXT
from ratfast.errors import InputError


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--latex", "form", flag_value="latex", help="Print LaTeX (booktabs).")
@click.option("--json", "form", flag_value="json", help="Print one JSON array.")
@click.option("--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write a page instead.")
@click.option(
    "--plots", metavar="DIR", type=click.Path(path_type=Path), help="Write its figures as SVG and PNG files."
)
@click.option(
    "--tensorboard",
    "logs",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write logs for TensorBoard.",
)
def report(folder: Path, form: str | None, page: Path | None, plots: Path | None, logs: Path | None) -> None:
    """Print the tables of FOLDER's runs under DomainBed's three ways of selection, or write a page.

    FOLDER is an output folder of ratfast-train, a folder of several, or any folder of runs with results.jsonl, such as
    a sweep of DomainBed's. Accuracies are those on the test domain's in-split, as collect_results prints them.

    The page (--html) is of output folders of ratfast-train alone: one file with the methods' accuracies, the analyses
    that `ratfast analyze run` made, every run's history, what was averaged, and the commands that repeat it.
    """
    if page is not None or plots is not None or logs is not None:
        if form is not None:
            raise InputError(f"--{form} prints tables, expected it without --html, --plots and --tensorboard")
        _write(folder, page, plots, logs)
        return
    from ratfast.analysis import domainbed

    found = domainbed.tables(domainbed.load_records(folder))
    if form == "json":
        click.echo(json.dumps(domainbed.to_dict(found)))
    else:
        click.echo(domainbed.to_latex(found) if form == "latex" else domainbed.to_text(found), nl=False)


def _write(folder: Path, page: Path | None, plots: Path | None, logs: Path | None) -> None:
    from ratfast.report.writing import read_sections, write_page, write_plots

    sections = read_sections(folder)
    if page is not None:
        write_page(sections, folder, page)
        click.echo(f"The page is in {page}")
    if plots is not None:
        click.echo(f"{len(write_plots(sections, plots))} files of figures are in {plots}")
    if logs is not None:
        from ratfast.report.tensorboard import write_tensorboard

        click.echo(f"The histories of {len(write_tensorboard(sections, logs))} runs are in {logs}")
    for section in sections:
        where = f"{section.output.folder}: " if len(sections) > 1 else ""
        for sentence in section.output.missing:
            click.echo(f"ratfast: {where}{sentence}", err=True)
