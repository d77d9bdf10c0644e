"""DomainBed's model selection over records of runs (`results.jsonl`), and its tables. No torch.

Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization" (arXiv 2007.01434): the three ways to choose a run
and its step, as in facebookresearch/DomainBed (`model_selection.py`, `scripts/collect_results.py`), whose tables these
are. Accuracies on a test domain are those on its in-split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ratfast import catalogue, protocol
from ratfast.errors import InputError

Record = Mapping[str, Any]
Choice = tuple[float, float]
"""Validation accuracy that decides, test accuracy that is reported."""

RESULTS = "results.jsonl"


def load_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of all runs in a folder.

    Args:
        folder: of runs (`<run>/results.jsonl`); or an output folder of ratfast, which has such a folder `table`; or a
            folder of output folders.

    Raises:
        InputError: there are no runs, or a line is not a record; names the file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, expected one of runs with {RESULTS}")
    for pattern in (f"*/{RESULTS}", f"table/*/{RESULTS}", f"*/table/*/{RESULTS}"):
        files = sorted(root.glob(pattern))
        if files:
            return [record for file in files for record in _read(file)]
    raise InputError(
        f"{root} holds no runs, expected {root}/<run>/{RESULTS} or an output folder of ratfast-train"
    )


def _read(file: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            arguments = record["args"]
            for key in ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"):
                _ = arguments[key]
            _ = record["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}, line {number}, is not a record of a run ({error!r}), expected a JSON object as DomainBed "
                "writes it"
            ) from error
        found.append(record)
    return found


def _domains(record: Record) -> int:
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def _held_out(records: Iterable[Record], count: int) -> list[Record]:
    return [record for record in records if len(record["args"]["test_envs"]) == count]


def _best(choices: Iterable[Choice | None]) -> Choice | None:
    """The first of the highest validation accuracy."""
    found = [choice for choice in choices if choice is not None]
    return max(found, key=lambda choice: choice[0]) if found else None


def training_domain_validation(run: Sequence[Record], test_env: int) -> Choice | None:
    """The step with the highest mean accuracy on the training domains' out-splits."""

    def of(record: Record) -> Choice:
        kept = [record[f"env{i}_out_acc"] for i in range(_domains(record)) if i != test_env]
        return protocol.selection_score(kept), record[f"env{test_env}_in_acc"]

    return _best(of(record) for record in _held_out(run, 1))


def leave_one_domain_out(run: Sequence[Record], test_env: int) -> Choice | None:
    """The step with the highest mean accuracy on training domains held out in turn, from runs that held out two."""

    def of(records: Sequence[Record]) -> Choice | None:
        single = _held_out(records, 1)
        if len(single) != 1:
            return None
        accuracies = {}
        for record in _held_out(records, 2):
            (other,) = set(record["args"]["test_envs"]) - {test_env}
            accuracies[other] = record[f"env{other}_in_acc"]
        needed = set(range(_domains(records[0]))) - {test_env}
        if accuracies.keys() != needed:
            return None
        score = protocol.selection_score([accuracies[env] for env in sorted(needed)])
        return score, single[0][f"env{test_env}_in_acc"]

    return _best(of(records) for records in _groups(run, lambda record: record["step"]).values())


def test_domain_validation(run: Sequence[Record], test_env: int) -> Choice | None:
    """The last step, by its accuracy on the test domain's out-split (an oracle: it looks at the test domain)."""
    single = _held_out(run, 1)
    if not single:
        return None
    last = sorted(single, key=lambda record: record["step"])[-1]
    return last[f"env{test_env}_out_acc"], last[f"env{test_env}_in_acc"]


test_domain_validation.__test__ = False  # the name is DomainBed's, not that of a test

SELECTIONS: dict[str, Callable[[Sequence[Record], int], Choice | None]] = {
    "training-domain validation set": training_domain_validation,
    "leave-one-domain-out cross-validation": leave_one_domain_out,
    "test-domain validation set (oracle)": test_domain_validation,
}
"""The ways of selection, in DomainBed's order, under its names."""


_ORDER = [
    "ColoredMNIST",
    "RotatedMNIST",
    "VLCS",
    "PACS",
    "OfficeHome",
    "TerraIncognita",
    "DomainNet",
    "SVIRO",
]


def _place(dataset: str) -> tuple[bool, int, str]:
    """Sorts data sets as DomainBed does, then others by name."""
    known = dataset in _ORDER
    return not known, _ORDER.index(dataset) if known else 0, dataset


def _groups(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


@dataclass(frozen=True)
class Cell:
    """Test accuracy over trials, as fractions.

    Attributes:
        mean: over trials.
        error: the standard error of the mean.
        trials: how many there are.
    """

    mean: float
    error: float
    trials: int

    @property
    def text(self) -> str:
        """As DomainBed prints it, in percent."""
        return f"{100 * self.mean:.1f} +/- {100 * self.error:.1f}"


@dataclass(frozen=True)
class Table:
    """Accuracies by algorithm and test domain, or by algorithm and data set.

    Attributes:
        selection: the way of selection.
        title: the data set, or "Averages".
        columns: names of the columns; the last is "Avg".
        rows: by algorithm, a cell for each column but the last; None where there are no runs.
    """

    selection: str
    title: str
    columns: tuple[str, ...]
    rows: dict[str, list[Cell | None]]

    def average(self, algorithm: str) -> float | None:
        """Mean over the columns, or None where one is empty."""
        cells = self.rows[algorithm]
        return None if None in cells else sum(cell.mean for cell in cells) / len(cells)


def tables(records: Sequence[Record]) -> list[Table]:
    """All tables: for each way of selection one for each data set, and one of their averages."""
    algorithms = sorted(
        {record["args"]["algorithm"] for record in records}, key=lambda name: (name != "ERM", name)
    )
    groups: dict[tuple[str, str, int, int], list[Record]] = {}
    for record in records:
        arguments = record["args"]
        for test_env in arguments["test_envs"]:
            if test_env >= 0:
                key = (arguments["dataset"], arguments["algorithm"], test_env, arguments["trial_seed"])
                groups.setdefault(key, []).append(record)
    datasets = sorted({dataset for dataset, *_ in groups}, key=_place)
    if not groups:
        raise InputError("no run holds a domain out, so there is nothing to report")
    return [table for name in SELECTIONS for table in _tables_of(name, groups, algorithms, datasets)]


def _tables_of(
    selection: str,
    groups: Mapping[tuple[str, str, int, int], Sequence[Record]],
    algorithms: Sequence[str],
    datasets: Sequence[str],
) -> list[Table]:
    chosen = {key: _choose(selection, records, key[2]) for key, records in groups.items()}
    found = []
    averages: dict[str, list[Cell | None]] = {algorithm: [] for algorithm in algorithms}
    for dataset in datasets:
        names = _domain_names(dataset, groups)
        rows: dict[str, list[Cell | None]] = {}
        for algorithm in algorithms:
            by_trial: dict[int, list[float]] = {}
            rows[algorithm] = []
            for test_env in range(len(names)):
                accuracies = {
                    key[3]: test
                    for key, test in chosen.items()
                    if key[:3] == (dataset, algorithm, test_env) and test is not None
                }
                rows[algorithm].append(_cell(list(accuracies.values())))
                for trial, test in accuracies.items():
                    by_trial.setdefault(trial, []).append(test)
            averages[algorithm].append(_cell([float(np.mean(tests)) for tests in by_trial.values()]))
        found.append(Table(selection, dataset, (*names, "Avg"), rows))
    found.append(Table(selection, "Averages", (*datasets, "Avg"), averages))
    return found


def _choose(selection: str, records: Sequence[Record], test_env: int) -> float | None:
    """Test accuracy of the run that a selection chooses among those of a sweep."""
    runs = _groups(records, lambda record: record["args"]["hparams_seed"])
    choices = [
        choice for run in runs.values() if (choice := SELECTIONS[selection](run, test_env)) is not None
    ]
    # Of equal ones DomainBed takes the last: it sorts upwards and reads from the end.
    return max(reversed(choices), key=lambda choice: choice[0])[1] if choices else None


def _cell(accuracies: Sequence[float]) -> Cell | None:
    if not accuracies:
        return None
    count = len(accuracies)
    error = float(np.std(np.asarray(accuracies) / np.sqrt(count)))
    return Cell(float(np.mean(accuracies)), error, count)


def _domain_names(dataset: str, groups: Mapping[tuple[str, str, int, int], Sequence[Record]]) -> list[str]:
    entry = catalogue.find(dataset)
    if entry is not None:
        return list(entry.domains)
    count = max(_domains(records[0]) for key, records in groups.items() if key[0] == dataset)
    return [str(index) for index in range(count)]


def to_dict(found: Sequence[Table]) -> list[dict[str, Any]]:
    """The tables as JSON-able values; accuracies are fractions, null where there are no runs."""
    return [
        {
            "selection": table.selection,
            "table": table.title,
            "columns": list(table.columns),
            "rows": {
                algorithm: {
                    "cells": [
                        None
                        if cell is None
                        else {"mean": cell.mean, "error": cell.error, "trials": cell.trials}
                        for cell in cells
                    ],
                    "average": table.average(algorithm),
                }
                for algorithm, cells in table.rows.items()
            },
        }
        for table in found
    ]


def to_text(found: Sequence[Table]) -> str:
    """The tables in columns, accuracies in percent."""
    blocks = []
    for table in found:
        name = table.title if table.title == "Averages" else f"Dataset: {table.title}"
        lines = [["Algorithm", *table.columns]]
        lines += [[algorithm, *_texts(table, algorithm)] for algorithm in table.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        rows = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines
        ]
        head = f"-------- {name}, model selection method: {table.selection}"
        blocks.append("\n".join([head, *map(str.rstrip, rows)]))
    return "\n\n".join(blocks) + "\n"


def to_latex(found: Sequence[Table]) -> str:
    """The tables as LaTeX (package booktabs), accuracies in percent."""
    parts = []
    for table in found:
        title = f"{table.title}, model selection: {table.selection}"
        head = " & ".join(f"\\textbf{{{_escaped(text)}}}" for text in ("Algorithm", *table.columns))
        lines = [
            " & ".join(
                [_escaped(algorithm), *(text.replace("+/-", "$\\pm$") for text in _texts(table, algorithm))]
            )
            for algorithm in table.rows
        ]
        body = " \\\\\n".join([*lines, ""])
        parts.append(
            f"% {title}\n\\begin{{tabular}}{{l{'c' * len(table.columns)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
            f"{body}\\bottomrule\n\\end{{tabular}}\n"
        )
    return "\n".join(parts)


def _texts(table: Table, algorithm: str) -> list[str]:
    cells = table.rows[algorithm]
    texts = ["X" if cell is None else cell.text for cell in cells]
    if None in cells:
        return [*texts, "X"]
    # Percents are averaged, not fractions: where a half is rounded, the last bit counts.
    return [*texts, f"{sum(100 * cell.mean for cell in cells) / len(cells):.1f}"]


def _escaped(text: str) -> str:
    for letter in "\\&%$#_{}":
        text = text.replace(letter, "\\" + letter) if letter != "\\" else text
    return text
