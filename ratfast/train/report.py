"""What a person reads at the end: the table of a summary, where the averages are, how to evaluate them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.table import Table


def results_table(summary: Mapping[str, Any]) -> Table:
    """The closing table: every member, their mean, the best single run, the averages.

    Args:
        summary: the content of `summary.json`.
    """
    title = f"{summary['target']}, tested on the domain {summary['test_domain']} that no run has seen"
    table = Table(title=title, title_justify="left")
    table.add_column("weights")
    table.add_column("starts from")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")

    def add(name: str, detail: str, record: Mapping[str, Any], style: str = "") -> None:
        table.add_row(name, detail, f"{record['val']:.4f}", f"{record['test']:.4f}", style=style)

    for member in summary["members"]:
        add(member["name"], member["initialisation"], member)
    table.add_section()
    add("mean of the members", "", summary["mean_of_members"])
    best = summary["best_single"]
    add("best single run", best["name"], best)
    for method, average in summary["averages"].items():
        add(f"{method} average", f"{len(average['members'])} of {len(summary['members'])}", average, "bold")
    return table


def rows_table(summary: Mapping[str, Any]) -> Table:
    """The lines of the paper's table that the recipe asked for.

    Args:
        summary: the content of `summary.json`.
    """
    table = Table(title="The methods, and where each is defined", title_justify="left")
    for column in ("method", "selection", "paper"):
        table.add_column(column)
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    for row in summary["rows"]:
        test = f"{row['test']:.4f}"
        if row["trials"] > 1:
            test += f" ± {row['test_error']:.4f}"
        table.add_row(row["method"], row["selection"], row["paper"], f"{row['val']:.4f}", test)
    return table


def closing_lines(summary: Mapping[str, Any], data_dir: str) -> list[str]:
    """Where the averaged model was saved, the command that evaluates it, and how many images were left out.

    Args:
        summary: the content of `summary.json`.
        data_dir: the folder of the data sets.
    """
    averages = summary["averages"]
    # Ratatouille's, over all trials where there are several; soups without auxiliary weights only where it is not.
    ranked = sorted(averages, key=lambda name: (name.startswith("soup-"), not name.endswith("dagger")))
    method = next(iter(ranked), None)
    if method is None:
        saved, file = "best single run", summary["best_single"]["checkpoint"]
    else:
        saved, file = f"{method} average", averages[method]["file"]
    command = ["ratfast", "evaluate", file, "--data-dir", data_dir, "--dataset", summary["target"]]
    command += ["--domain", summary["test_domain"]]
    lines = [f"The {saved} is saved in {file}; to evaluate it:"]
    left_out = summary.get("left_out", {"images": 0})
    if left_out["images"]:
        command += ["--on-bad-image", "skip"]
        count = f"{left_out['images']} image{'s were' if left_out['images'] > 1 else ' was'}"
        lines.insert(0, f"{count} left out as unreadable, listed in {left_out['file']}.")
    return [*lines, "  " + shlex.join(command)]
