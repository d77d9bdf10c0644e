"""From the output folders of the study to one record: accuracies by method and domain, and what recycling gains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import record as provenance

from ratfast import InputError, config
from ratfast.report.methods import Score, mean_score, method_rows, score
from ratfast.report.reading import Output, read_output
from ratfast.train import records

GAINS = {
    # What is compared: the arm and average of the first, the arm and average of the second.
    "recycled, near tasks": (("main", "uniform"), ("main", "soup-uniform")),
    "recycled, near tasks, greedy": (("main", "greedy"), ("main", "soup-greedy")),
    "recycled, far task": (("far", "uniform"), ("main", "soup-uniform")),
    "recycled, near tasks, trained three times as long": (("long", "uniform"), ("long", "soup-uniform")),
    "trained three times as long, not recycled": (("long", "soup-uniform"), ("main", "soup-uniform")),
}
"""Differences of test accuracies between averages of the same trial, which share splits and draws."""


def collect(output: Path, arms: Sequence[str], domains: Sequence[str], fraction: float) -> dict[str, Any]:
    """The record of a finished study; where one is there that says the same, that one.

    Args:
        output: the study's folder.
        arms: those that were carried out.
        domains: those that were held out in turn.
        fraction: of the recipes' steps.
    """
    outputs = {arm: {domain: read_output(output / arm / domain) for domain in domains} for arm in arms}
    found: dict[str, Any] = {
        "fraction": fraction,
        "arms": {arm: _arm(list(outputs[arm].values()), domains) for arm in arms},
        "gains": [
            {"what": what, **gain}
            for what, pair in GAINS.items()
            if {arm for arm, _ in pair} <= set(arms) and (gain := _gain(outputs, pair, domains))
        ],
    }
    path = output / "study.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if all(earlier.get(key) == json.loads(json.dumps(value)) for key, value in found.items()):
            return earlier
    machine = provenance.machine()
    commit = provenance.output("git", "rev-parse", "HEAD") or "unknown"
    return {"commit": commit, "machine": machine, "versions": provenance.versions(), **found}


def _arm(outputs: Sequence[Output], domains: Sequence[str]) -> dict[str, Any]:
    """The recipe, the time, and each method's accuracy on each held-out domain with its standard error."""
    tables = [{row.method: row for row in method_rows(output)} for output in outputs]
    methods = list(dict.fromkeys(name for table in tables for name in table))
    if not methods:
        raise InputError(f"{outputs[0].folder} has no finished training, expected one")
    rows = []
    for method in methods:
        scores = [table[method].test if method in table else None for table in tables]
        cells = {
            domain: asdict(found) for domain, found in zip(domains, scores, strict=True) if found is not None
        }
        rows.append({"method": method, "domains": cells, "mean": asdict(mean_score(scores))})
    # As the file has it: a later version's further keys are no part of what was carried out.
    recipe = config.read_toml(outputs[0].folder / records.RECIPE)
    for key in ("data.dir", "data.test_env", "output.dir"):
        del recipe[key]
    seconds = {
        domain: round(sum(output.summary["seconds"].values()))
        for domain, output in zip(domains, outputs, strict=True)
    }
    return {"recipe": recipe, "training_seconds": seconds, "rows": rows}


def _gain(
    outputs: dict[str, dict[str, Output]],
    pair: tuple[tuple[str, str], tuple[str, str]],
    domains: Sequence[str],
) -> dict[str, Any] | None:
    """Mean and standard error, by domain over trials, of the difference between two averages."""
    found = {}
    for domain in domains:
        first, second = (dict(_by_trial(outputs[arm][domain], name)) for arm, name in pair)
        differences = [first[trial] - second[trial] for trial in first if trial in second]
        found[domain] = score(differences)
    mean = mean_score(list(found.values()))
    if mean.mean is None:
        return None
    return {"domains": {domain: asdict(value) for domain, value in found.items()}, "mean": asdict(mean)}


def _by_trial(output: Output, average: str) -> Iterator[tuple[str, float]]:
    for name, made in output.summary["averages"].items():
        base, _, trial = name.partition("_trial")
        if base == average:
            yield trial, made["test"]


def tables(record: dict[str, Any]) -> str:
    """The record as tables in Markdown, accuracies in percent."""
    blocks = []
    for arm, found in record["arms"].items():
        blocks.append(f"**{arm}**: accuracy on the held-out domain\n\n" + _table("method", found["rows"]))
    gains = [{"method": gain["what"], **gain} for gain in record["gains"]]
    if gains:
        blocks.append("**Gains** of the averaged network, in points\n\n" + _table("what", gains, signed=True))
    return "\n\n".join(blocks) + "\n"


def _table(head: str, rows: Sequence[dict[str, Any]], signed: bool = False) -> str:
    domains = list(rows[0]["domains"])

    def text(cell: dict[str, Any] | None) -> str:
        shown = Score(**cell).text if cell else Score(None, None, 0).text
        return f"+{shown}" if signed and cell and (cell["mean"] or 0) > 0 else shown

    lines = [[head, *domains, "mean"], ["---", *["---:"] * (len(domains) + 1)]]
    lines += [
        [row["method"], *(text(row["domains"].get(domain)) for domain in domains), text(row["mean"])]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
