"""`ratfast data`: the table of data sets, checking folders, downloading. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ratfast import catalogue
from ratfast.cli.context import CONTEXT
from ratfast.errors import InputError

if TYPE_CHECKING:
    from ratfast.data.checking import Inspection

_HEARTBEAT_SECONDS = 30.0
_MOST_LISTED = 20


@click.group(context_settings=CONTEXT)
def data() -> None:
    """Data sets: what there is, whether it is whole, downloading it.

    From nothing to a training:

    \b
      ratfast data list
      ratfast data fetch PACS --data-dir DATA
      ratfast data check PACS --data-dir DATA
      ratfast-train --data-dir DATA --target PACS --test-env art_painting --output runs/pacs0

    Any other folder DATA/NAME/<domain>/<class>/<image> can be checked and trained on as well.
    """


@data.command("list", context_settings=CONTEXT)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Say also which of them are in this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(data_dir: Path | None, as_json: bool) -> None:
    """Show the data sets that are known by name."""
    rows = [_row(entry, data_dir) for entry in catalogue.CATALOGUE]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'name':<18}{'folder':<17}{'images':>8}{'classes':>9}{'steps':>7}{'evaluated every':>17}")
    for row in rows:
        name = row["name"] + (" *" if row["paper"] else "")
        images = f"{row['images']:,}" if row["images"] else "?"
        there = f"  {'there' if row['there'] else 'not there'}" if data_dir is not None else ""
        click.echo(
            f"{name:<18}{row['folder']:<17}{images:>8}{row['classes'] or '?':>9}{row['steps']:>7}"
            f"{row['interval']:>17}{there}"
        )
        click.echo(f"    {', '.join(row['domains'])}")
        if row["note"]:
            click.echo(f"    {row['note']}")
    click.echo("* in the paper's table")


def _row(entry: catalogue.Description, data_dir: Path | None) -> dict[str, Any]:
    from ratfast.data.fetching.sources import SOURCES

    row = {
        "name": entry.name,
        "folder": entry.folder,
        "domains": list(entry.domains),
        "classes": entry.class_count,
        "images": entry.images,
        "editions": [
            {"name": edition.name, "images": dict(zip(entry.domains, edition.images, strict=True))}
            for edition in entry.editions
        ],
        "steps": entry.steps,
        "interval": entry.interval,
        "paper": entry.paper,
        "note": entry.note,
        "sources": [{"file": source.file, "urls": list(source.urls)} for source in SOURCES[entry.name]],
    }
    if data_dir is not None:
        row["there"] = catalogue.find_folder(data_dir, entry.name).is_dir()
    return row


@data.command(context_settings=CONTEXT)
@click.argument("names", nargs=-1, metavar="NAME|FOLDER...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder that holds the data sets' folders.")
@click.option(
    "--quick", is_flag=True, help="Judge each image by its first and last bytes instead of decoding it."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Images at a time.  [default: all processors]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    names: tuple[str, ...], data_dir: Path | None, quick: bool, threads: int | None, as_json: bool
) -> None:
    """Say what of data sets is there, missing or unreadable.

    Compares with the published numbers where they are known. Without NAME, checks all of --data-dir. Exits with 2 if
    something is wrong.
    """
    from ratfast.data.checking import inspect

    found = []
    for folder in _folders(names, data_dir):
        entry = catalogue.find(folder.resolve().name)
        with _bars() as (progress, _):
            what = f"checking {entry.name if entry else folder.name}"
            found.append(
                inspect(
                    folder,
                    entry,
                    look=True,
                    decode=not quick,
                    threads=threads,
                    progress=lambda done, total, what=what: progress(what, done, total),
                )
            )
    if as_json:
        click.echo(
            json.dumps(
                {"ok": all(each.ok for each in found), "datasets": list(map(_as_json, found))}, indent=2
            )
        )
    else:
        for each in found:
            _show(each)
    if not all(each.ok for each in found):
        raise click.exceptions.Exit(2)


def _folders(names: tuple[str, ...], data_dir: Path | None) -> list[Path]:
    if names:
        return [_folder(name, data_dir) for name in names]
    if data_dir is None:
        raise InputError(
            "there is nothing to check, expected a NAME or FOLDER, or --data-dir to check all in it"
        )
    try:
        found = sorted(path for path in data_dir.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise InputError(f"cannot list folder {data_dir}: {(error.strerror or '').lower()}") from error
    found = [
        path for path in found if path.name != "MNIST"
    ]  # torchvision's, of which DomainBed makes its own
    if not found:
        raise InputError(
            f"{data_dir} holds no data sets, expected {data_dir}/<data set>/<domain>/<class>/<image>"
        )
    return found


def _folder(name: str, data_dir: Path | None) -> Path:
    if data_dir is not None:
        return catalogue.find_folder(data_dir, name)
    if not Path(name).expanduser().is_dir() and catalogue.find(name) is not None:
        raise InputError(f"there is no folder {name} here, expected --data-dir, the folder that holds it")
    return Path(name).expanduser()


def _as_json(found: Inspection) -> dict[str, Any]:
    return {
        "name": found.name,
        "folder": str(found.folder),
        "ok": found.ok,
        "sentence": found.sentence(),
        "images": found.images,
        "domains": {domain: sum(labels.values()) for domain, labels in found.counts.items()},
        "classes": sorted({label for labels in found.counts.values() for label in labels}),
        "edition": None if found.edition is None else found.edition.name,
        "published": _published(found),
        "problems": [*found.structure, *found.differences],
        "decoded": found.decoded,
        "bad": [{"path": image.path, "defect": image.defect} for image in found.bad or ()],
    }


def _published(found: Inspection) -> dict[str, int]:
    entry = catalogue.find(found.name) if found.known else None
    if entry is None or found.edition is None:
        return {}
    return dict(zip(entry.domains, found.edition.images, strict=True))


def _show(found: Inspection) -> None:
    published = _published(found)
    width = max((len(domain) for domain in found.counts), default=0)
    for domain, labels in found.counts.items():
        count = sum(labels.values())
        beside = f" of {published[domain]:,}" if published.get(domain, count) != count else ""
        click.echo(f"  {_printable(domain):<{width}}  {count:>9,}{beside} images in {len(labels)} classes")
    for problem in found.structure:  # the counts say the rest
        click.echo(f"  {_printable(problem)}")
    bad = found.bad or ()
    for image in bad[:_MOST_LISTED]:
        click.echo(f"  {_printable(image.path)} {_printable(image.defect)}")
    if len(bad) > _MOST_LISTED:
        click.echo(f"  and {len(bad) - _MOST_LISTED} more files that cannot be read; --json lists them all")
    click.echo(_printable(found.sentence()))


def _printable(text: str) -> str:
    """A text on one line of UTF-8, whatever the names of files in it are."""
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return clean.encode("utf-8", "backslashreplace").decode()


@data.command(context_settings=CONTEXT)
@click.argument("name")
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder that holds the data sets' folders.",
)
@click.option(
    "--from",
    "given",
    multiple=True,
    metavar="FILE|URL",
    help="An archive that you have, or another address of it, in place of a published one; as often as there are "
    "files, in the order of `ratfast data list --json`.",
)
@click.option("--keep", is_flag=True, help="Keep the downloaded files.")
def fetch(name: str, data_dir: Path, given: tuple[str, ...], keep: bool) -> None:
    """Download the data set NAME and lay it out as DomainBed does.

    The same command again continues where it was interrupted. The folder of the data set appears once every domain is
    there. What a data set may be used for, its authors say; ratfast does not ship any.
    """
    from ratfast.data.fetching import fetch as fetch_dataset
    from ratfast.data.fetching.download import Watcher

    with _bars(bytes_=True) as (progress, say):
        found = fetch_dataset(name, data_dir, given=given, keep=keep, watcher=Watcher(progress, say))
    click.echo(_printable(found.sentence()))
    if not found.ok:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _bars(
    bytes_: bool = False,
) -> Iterator[tuple[Callable[[str, int, int | None], None], Callable[[str], None]]]:
    """Bars on a terminal's standard error; elsewhere a line now and then. Yields a progress and a message function."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (DownloadColumn(), TransferSpeedColumn()) if bytes_ else (MofNCompleteColumn(),)
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        last = time.monotonic()

    def progress(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)
        if bars.disable and time.monotonic() - last > _HEARTBEAT_SECONDS:
            shown = (
                f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
                if bytes_ and total
                else f"{done} of {total or '?'}"
            )
            say(f"{what}: {shown}")

    with bars:
        yield progress, say
