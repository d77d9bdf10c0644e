"""`ratfast plan`: what a recipe amounts to, what of it is done, how long the rest takes. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from ratfast.cli.context import CONTEXT
from ratfast.cli.recipes import other_keys, read_recipe, recipe_arguments
from ratfast.errors import InputError

_POSITIVE = click.FloatRange(min=0, min_open=True, max=1e12)
_MOST_LISTED = 20


@click.command(context_settings=CONTEXT, epilog=other_keys())
@recipe_arguments
@click.option(
    "--images-per-second",
    type=_POSITIVE,
    metavar="R",
    help="Training rate of one worker to reckon with, instead of that of finished runs.",
)
@click.option(
    "--price-per-hour", type=_POSITIVE, metavar="P", help="Of one worker, such as its GPU: adds the cost."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every task.")
def plan(
    recipe: str | None,
    overrides: tuple[str, ...],
    images_per_second: float | None,
    price_per_hour: float | None,
    as_json: bool,
    **values: str | None,
) -> None:
    """Show what ratfast-train with the same arguments would do, what of it is done, and how long the rest takes.

    Nothing is trained or written. Rates are those of runs that are finished in the output folder, or
    --images-per-second. The time is that of --workers N workers (1 if it is not given).
    """
    from ratfast.train.estimate import estimate
    from ratfast.train.plan import make_plan, scan_datasets
    from ratfast.train.remote import StoreError
    from ratfast.train.store import open_store

    built = read_recipe(recipe, overrides, values)
    datasets = scan_datasets(built)
    notes: list[str] = []
    made = make_plan(built, datasets, notes.append)
    store = open_store(built)
    try:
        with store.looked_at(made.tasks) as output:
            found = estimate(
                made,
                built,
                datasets,
                output=output,
                images_per_second=images_per_second,
                price_per_hour=price_per_hour,
            )
        holder = store.holder()
    except StoreError as error:
        raise InputError(f"output.store: {error}") from error
    running = None if holder is None else str(holder)
    if as_json:
        click.echo(json.dumps({**found, "running": running, "notes": notes}, indent=2))
        return
    target = datasets[built.data.target]
    kept = "" if store.remote is None else f", {store}"
    click.echo(
        f"{target.name}, tested on {target.domains[made.test_env].name}; output folder {found['output']}{kept}"
    )
    if running and store.remote is not None:
        running += ", unless that was killed"  # nobody can tell without watching for a while
    for line in [*notes, *_lines(found, running, price_per_hour)]:
        click.echo(line)


def _lines(found: Mapping[str, Any], running: str | None, price: float | None) -> Iterator[str]:
    tasks = found["tasks"]
    yield ""
    counts = f"{'runs':>7}{'done':>7}{'begun':>7}{'to do':>7}"
    yield f"{'stage':<11}{counts}{'updates left':>14}{'images left':>15}{'time':>12}"
    stages = dict.fromkeys(task["stage"] for task in tasks)
    for stage in stages:
        yield _row(stage, [task for task in tasks if task["stage"] == stage])
    yield _row("all", tasks)
    yield ""
    yield from _listed(
        "begun",
        [
            f"{task['name']}, update {task['updates']} of {task['steps']}"
            for task in tasks
            if task["state"] == "begun"
        ],
    )
    yield from _listed(
        "failed when last tried",
        [f"{task['name']}: {task['failure']}" for task in tasks if "failure" in task],
    )
    if running is not None:
        yield f"being carried out now by {running}"
    yield _time(found)
    if found["cost"] is not None:
        yield f"cost: {found['cost']:,.2f}, at {price:,.2f} an hour of each worker"
    elif price is not None:
        yield "cost: unknown, like the time"


def _row(stage: str, tasks: Sequence[Mapping[str, Any]]) -> str:
    count = {state: sum(task["state"] == state for task in tasks) for state in ("done", "begun", "to do")}
    updates = sum(task["steps"] - task["updates"] for task in tasks)
    images = sum(task["images"] for task in tasks)
    # Averages, whose time is not known, count as nothing in the sum of all stages.
    seconds = [task["seconds"] for task in tasks if task["stage"] != "averages" or stage == "averages"]
    time = "" if None in seconds else duration(sum(seconds))
    return (
        f"{stage:<11}{len(tasks):>7,}{count['done']:>7,}{count['begun']:>7,}{count['to do']:>7,}"
        f"{updates:>14,}{images:>15,}{time:>12}"
    )


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines[:_MOST_LISTED])
        if len(lines) > _MOST_LISTED:
            yield f"  and {len(lines) - _MOST_LISTED} more (--json lists all)"


def _time(found: Mapping[str, Any]) -> str:
    if all(task["state"] == "done" for task in found["tasks"]):
        return "time: none, everything is done"
    if found["seconds"] is None:
        return (
            "time: unknown, nothing is measured here yet; --images-per-second R reckons with a rate of yours"
        )
    where = f"measured in {found['measured_runs']} finished runs" if found["measured_runs"] else "as given"
    workers = found["workers"]
    with_all = f", {duration(found['seconds'])} with {workers} workers" if workers > 1 else ""
    return (
        f"time: {duration(found['work_seconds'])} of work{with_all}, at {found['images_per_second']:,.0f} images/s "
        f"({found['head_images_per_second']:,.0f} where the head alone is trained), {where}; averages not counted"
    )


def duration(seconds: float) -> str:
    """Seconds as a person reads them, to two units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
