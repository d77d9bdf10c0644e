"""`ratfast report`: DomainBed's tables of a folder of runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ratfast.cli.context import CONTEXT


@click.command(context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--latex", "form", flag_value="latex", help="Print LaTeX (booktabs).")
@click.option("--json", "form", flag_value="json", help="Print one JSON array.")
def report(folder: Path, form: str | None) -> None:
    """Print the tables of FOLDER's runs under DomainBed's three ways of selection.

    FOLDER is an output folder of ratfast-train, a folder of several, or any folder of runs with results.jsonl, such as
    a sweep of DomainBed's. Accuracies are those on the test domain's in-split, as collect_results prints them.
    """
    from ratfast.analysis import domainbed

    found = domainbed.tables(domainbed.load_records(folder))
    if form == "json":
        click.echo(json.dumps(domainbed.to_dict(found)))
    else:
        click.echo(domainbed.to_latex(found) if form == "latex" else domainbed.to_text(found), nl=False)
