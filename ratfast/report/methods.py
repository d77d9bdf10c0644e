"""The table of methods: what each way to a single network reaches on the test domain, with standard errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ratfast.report.reading import Output

NOTHING = "—"
"""Where there is no number."""

_TRIAL = re.compile(r"_trial\d+$")


@dataclass(frozen=True)
class Score:
    """Accuracy, a fraction, over some networks.

    Attributes:
        mean: of them; None if it is not known.
        error: standard error of the mean; None for one network.
        count: how many there are.
    """

    mean: float | None
    error: float | None
    count: int

    @property
    def text(self) -> str:
        """In percent."""
        if self.mean is None:
            return NOTHING
        return f"{100 * self.mean:.1f}" + ("" if self.error is None else f" ± {100 * self.error:.1f}")


@dataclass(frozen=True)
class MethodRow:
    """A line of the table.

    Attributes:
        method: its name.
        detail: what it is made of.
        of: what the score is over: trials, or members.
        val: on the training domains' validation images.
        test: on the held-out domain.
        is_average: whether it averages weights over runs.
    """

    method: str
    detail: str
    of: str
    val: Score
    test: Score
    is_average: bool


def score(values: Sequence[float]) -> Score:
    """Mean and standard error, std / sqrt(n) with n in the standard deviation, as DomainBed's tables have it."""
    if not values:
        return Score(None, None, 0)
    mean = fmean(values)
    if len(values) == 1:
        return Score(mean, None, 1)
    std = math.sqrt(fmean([(value - mean) ** 2 for value in values]))
    return Score(mean, std / math.sqrt(len(values)), len(values))


def mean_score(scores: Sequence[Score | None]) -> Score:
    """The mean over test domains, whose errors are independent; nothing where one of them is missing."""
    found = [score for score in scores if score is not None and score.mean is not None]
    if not found or len(found) < len(scores):
        return Score(None, None, 0)
    errors = [score.error for score in found if score.error is not None]
    error = math.hypot(*errors) / len(errors) if len(errors) == len(found) else None
    return Score(fmean(score.mean for score in found if score.mean is not None), error, len(found))


def method_rows(output: Output) -> list[MethodRow]:
    """The table of one output folder; empty without a summary."""
    members, lines = output.members, output.lines
    rows = []
    if members:
        rows.append(_row("Mean of the members", f"{len(members)} fine-tunings", "members", members, False))
    if lines:
        return rows + [_line(line) for line in lines]
    if members:
        best = _best_of_trials(members)
        name = str(best[0].get("name", "?")) if len(best) == 1 else "the best of each trial"
        rows.append(_row("Best single run", f"{name}, by validation", "trials", best, False))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for average in output.averages:
        if average.record:
            groups.setdefault(_TRIAL.sub("", average.name), []).append(average.record)
    for method, found in groups.items():
        sizes = sorted({len(record.get("members") or []) for record in found})
        used = " to ".join(str(size) for size in dict.fromkeys([sizes[0], sizes[-1]]))
        detail = f"{used} of {len(members) // len(found) if members else '?'} members"
        rows.append(_row(f"{method.capitalize()} average", detail, "trials", found, True))
    return rows


def _best_of_trials(members: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The member with the best validation accuracy in each trial."""
    trials: dict[str, list[Mapping[str, Any]]] = {}
    for member in members:
        found = re.search(r"trial(\d+)", str(member.get("name", "")))
        trials.setdefault(found[1] if found else "0", []).append(member)
    return [max(trial, key=lambda member: member.get("val") or 0.0) for trial in trials.values()]


def _row(
    method: str, detail: str, of: str, found: Sequence[Mapping[str, Any]], is_average: bool
) -> MethodRow:
    val, test = (score([r[key] for r in found if is_number(r.get(key))]) for key in ("val", "test"))
    return MethodRow(method, detail, of, val, test, is_average)


def _line(line: Mapping[str, Any]) -> MethodRow:
    """A line that the training's own table has already."""
    trials = line.get("trials") if isinstance(line.get("trials"), int) else 1
    error = line.get("test_error") if trials > 1 else None
    return MethodRow(
        method=f"{line.get('method', '?')}, {line.get('selection', '?')}",
        detail=str(line.get("definition", "")),
        of="trials",
        val=Score(line.get("val"), None, trials),
        test=Score(line.get("test"), error, trials),
        is_average=line.get("selection") != "ID val",
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
