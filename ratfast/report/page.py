"""The page itself: one HTML file that needs nothing else, neither a network nor scripts."""

from __future__ import annotations

import importlib.resources
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratfast.errors import InputError
from ratfast.report.charts import short
from ratfast.report.drawing import PALETTE, Chart, inline_svg
from ratfast.report.methods import NOTHING, MethodRow, is_number, mean_score, method_rows
from ratfast.report.reading import Output, Run
from ratfast.version import __version__

_GROUPS = (
    (
        "What came out",
        "Lines of in-domain against out-of-domain accuracy: Miller et al., arXiv 2107.04649.",
        ("members", "domains"),
    ),
    (
        "Between the networks",
        (
            "Accuracy of (1 - λ) of the first and λ of the last network; two first ones share 1 - λ. Bands: 95% of "
            "bootstraps over the images. Dashed: the straight line between the ends; the barrier is how far the curve "
            "falls below it, the gain how far it rises above it. Connected: nowhere below it by more than chance "
            "(Frankle et al., arXiv 1912.05671; Rame et al., arXiv 2212.10445)."
        ),
        ("curve-",),
    ),
    (
        "How many to average",
        "Random subsets of the runs: Rame et al., arXiv 2212.10445.",
        ("growth-",),
    ),
    (
        "What averaging does",
        (
            "Average against ensemble: Wortsman et al., arXiv 2203.05482. Gain against diversity: Rame et al., arXiv "
            "2205.09739."
        ),
        ("ensembles", "gain"),
    ),
    (
        "How the networks differ",
        (
            "Ratio-error: Aksela, 2003; Kuncheva and Whitaker, 2003. Centred kernel alignment (CKA): Kornblith et "
            "al., arXiv 1905.00414."
        ),
        ("pairs-",),
    ),
    ("Histories", "", ("history-",)),
)
"""Of the figures: heading, what is to be known, and how the names of those below it begin."""


@dataclass(frozen=True)
class Section:
    """One output folder on the page.

    Attributes:
        output: what was read.
        charts: its figures.
        rows: its table of methods.
    """

    output: Output
    charts: list[Chart]
    rows: list[MethodRow]

    @property
    def groups(self) -> list[tuple[str, str, list[Chart]]]:
        """The figures below their headings and notes."""
        found = [
            (title, note, [chart for chart in self.charts if chart.name.startswith(starts)])
            for title, note, starts in _GROUPS
        ]
        return [group for group in found if group[2]]

    @property
    def commands(self) -> list[tuple[str, str]]:
        """What repeats it: what a command does, and the command."""
        output = self.output
        folder = str(output.folder)
        found = [
            (
                "The training, in another folder",
                ["ratfast-train", f"{folder}/recipe.toml", "--output", "again"],
            ),
            ("The analyses", ["ratfast", "analyze", "run", folder]),
            ("This page", ["ratfast", "report", folder, "--html", "report.html"]),
        ]
        for average in output.averages:
            if average.inputs:
                file = f"{folder}/averages/{average.name}.safetensors"
                again = ["ratfast", "average", "--again", file, "-o", f"{average.name}.safetensors"]
                found.append((f"The {average.name} average, to the byte", again))
        if output.averages and output.data_dir and output.summary:
            file = f"{folder}/averages/{output.averages[0].name}.safetensors"
            where = ["--data-dir", output.data_dir, "--dataset", str(output.summary.get("target"))]
            command = ["ratfast", "evaluate", file, *where, "--domain", output.test_domain]
            found.append((f"The {output.averages[0].name} average's accuracy", command))
        return [(what, shlex.join(words)) for what, words in found]

    @property
    def versions(self) -> str:
        """The versions of ratfast that made the averages and the analyses."""
        notes = [average.note for average in self.output.averages] + [self.output.analysis]
        found = sorted({str(note["version"]) for note in notes if note.get("version")})
        return ", ".join(found) or "not recorded"


def build_page(sections: Sequence[Section], title: str) -> str:
    """The page of some output folders.

    Args:
        sections: at least one.
        title: of the page.

    Raises:
        InputError: a package is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise InputError(
            'a page needs the package jinja2: pip install "ratfast[report]" installs it'
        ) from None
    source = importlib.resources.files("ratfast.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": _percent, "short": short, "number": _number, "duration": _duration}
    return environment.from_string(source).render(
        title=title,
        sections=sections,
        overviews=_overviews(sections),
        palette=PALETTE,
        # Markup, not text: it is the only thing on the page that is not escaped.
        svg=lambda chart: jinja2.utils.markupsafe.Markup(inline_svg(chart)),
        columns=_columns,
        version=__version__,
    )


def section(output: Output, charts: list[Chart]) -> Section:
    """An output folder with its figures and table."""
    return Section(output, charts, method_rows(output))


def _overviews(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """A table of all output folders; one for each folder that holds several of them, where there are such folders."""
    folders: dict[Path, list[Section]] = {}
    for part in sections:
        folders.setdefault(part.output.folder.parent, []).append(part)
    several = {folder: own for folder, own in folders.items() if len(own) > 1}
    if len(folders) > 1 and several:
        return [{"title": folder.name, **_overview(own)} for folder, own in several.items()]
    return [{"title": "", **_overview(sections)}] if len(sections) > 1 else []


def _overview(sections: Sequence[Section]) -> dict[str, Any]:
    """Test accuracy by method and output folder, and its mean over them where none is missing."""
    tests = [{row.method: row.test for row in section.rows} for section in sections]
    methods = list(dict.fromkeys(name for test in tests for name in test))
    rows = []
    for method in methods:
        found = [test.get(method) for test in tests]
        cells = [NOTHING if score is None else score.text for score in found]
        rows.append({"method": method, "cells": [*cells, mean_score(found).text]})
    outputs = [section.output for section in sections]
    targets = {output.summary.get("target") for output in outputs}
    names = [
        output.title if len(targets) > 1 or not output.summary else output.test_domain for output in outputs
    ]
    return {"columns": [*names, "mean"], "rows": rows}


def _columns(run: Run) -> list[str]:
    """The numbers of a run's history that are worth a column."""
    names = dict.fromkeys(key for row in run.rows for key, value in row.items() if is_number(value))
    first = [name for name in ("step", "loss", "val") if name in names]
    return first + [name for name in names if name.endswith("_acc") and name not in first]


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if is_number(value) else NOTHING


def _number(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else NOTHING if value is None else str(value)


def _duration(value: Any) -> str:
    if not is_number(value):
        return NOTHING
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {seconds:02} s"
        if minutes
        else f"{seconds} s"
    )
