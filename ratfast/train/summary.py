"""What a whole recipe says in the end: `summary.json`, the lines of the paper's table, and records of them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ratfast.config import Recipe
from ratfast.config.schema import PROTOCOL_SWITCHES
from ratfast.train import records
from ratfast.train.context import Context
from ratfast.train.left_out import summary_of
from ratfast.train.plan import Job, Plan, average_key, run_arguments
from ratfast.train.rows import METHODS, Method, row_names
from ratfast.train.state import read_run

TABLE = "table"
"""The folder of the records that DomainBed's `collect_results` reads: each line of the table is an algorithm there."""


def describe_protocol(recipe: Recipe) -> str:
    """The protocol and its switches, in a line."""
    settled = recipe.protocol.settled()
    switches = ", ".join(f"{name}={getattr(settled, name)}" for name in PROTOCOL_SWITCHES)
    return f"protocol {settled.name}: {switches}"


def summarise(plan: Plan, context: Context, averages: dict[str, Any]) -> dict[str, Any]:
    """Collects what every run left into the content of `summary.json`.

    Args:
        plan: the trainings.
        context: what they share.
        averages: by method, from `ratfast.train.averages.read_averages`.

    Returns:
        `target`, `test_domain`; `protocol` (its switches); `members` of the first sweep (name, initialisation, `val`,
        `test`, checkpoint), `mean_of_members`, `best_single`; `averages` (by method: `val`, `test`, members used,
        seconds, file); `rows` (the lines of the paper's table); `seconds` by stage; accuracies are fractions. `val` is
        the mean over the training domains. With `data.on_bad_image = "skip"` also `left_out`: how many images, and
        the file that lists them.
    """
    output = context.output
    runs = _read_runs(plan, context)
    sweep = next(name for name in ("target", "plain", "fusing", "vanilla") if name in plan.sweeps)
    members = [
        {
            "name": job.name,
            "initialisation": job.start,
            "val": runs[job.name]["val"],
            "test": runs[job.name]["test"],
            "checkpoint": str(output / job.name / records.CHECKPOINT),
        }
        for job in plan.sweeps[sweep]
    ]
    seconds: dict[str, float] = {}
    for job in plan.jobs:
        seconds[job.stage] = seconds.get(job.stage, 0.0) + runs[job.name]["seconds"]
    target = context.tasks.datasets[context.recipe.data.target]
    settled = context.recipe.protocol.settled()
    left_out = context.tasks.left_out
    return {
        "target": target.name,
        "test_domain": target.domains[plan.test_env].name,
        "protocol": {"name": settled.name, **{name: getattr(settled, name) for name in PROTOCOL_SWITCHES}},
        "members": members,
        "mean_of_members": {
            key: sum(member[key] for member in members) / len(members) for key in ("val", "test")
        },
        "best_single": max(members, key=lambda member: member["val"]),
        "averages": {
            method: {key: value for key, value in record.items() if key != "row"}
            for method, record in averages.items()
        },
        "rows": [
            _line(method, found)
            for method in METHODS
            if method.row in row_names(context.recipe.train.rows)
            and (found := _trials(method, plan, context, runs, averages))
        ],
        "seconds": seconds | {"averages": sum(record["seconds"] for record in averages.values())},
        **({"left_out": summary_of(output, left_out)} if left_out else {}),
    }


def _read_runs(plan: Plan, context: Context) -> dict[str, dict[str, Any]]:
    return {job.name: read_run(job, context.output) for job in plan.jobs}


def _trials(
    method: Method,
    plan: Plan,
    context: Context,
    runs: Mapping[str, dict[str, Any]],
    averages: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """The network that a method chooses in each trial: `val`, `test`, and its file."""
    found = []
    trials = plan.trial_seeds
    for trial_seed in trials:
        if method.average in (None, "along"):
            found.append(_best(method, plan.members(trial_seed, method.sweep), context, runs))
        elif not method.average.endswith("dagger"):
            found.append(averages[average_key(method.average, trial_seed, len(trials))])
    if not found and method.average in averages:
        found.append(averages[method.average])
    return found


def _best(
    method: Method, jobs: Sequence[Job], context: Context, runs: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The run, or the average along a run, with the highest validation accuracy."""

    def of(job: Job) -> dict[str, Any]:
        run = runs[job.name]
        return run["along"][method.row] if method.average == "along" else run

    best = max(jobs, key=lambda job: of(job)["val"])
    file = f"{method.row}.safetensors" if method.average == "along" else records.CHECKPOINT
    return {**of(best), "file": str(context.output / best.name / file)}


def _line(method: Method, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of the table: means over the trials, with the standard error of the test accuracy."""
    tests = [trial["test"] for trial in trials]
    mean = sum(tests) / len(tests)
    spread = math.sqrt(sum((test - mean) ** 2 for test in tests) / len(tests))
    return {
        "row": method.row,
        "method": method.label,
        "selection": method.selection,
        "paper": method.paper,
        "definition": method.definition,
        "val": sum(trial["val"] for trial in trials) / len(trials),
        "test": mean,
        "test_error": spread / math.sqrt(len(tests)),
        "trials": len(tests),
        "files": [trial["file"] for trial in trials],
    }


def write_table(plan: Plan, context: Context, summary: Mapping[str, Any]) -> None:
    """Writes `table/`: a folder of records as DomainBed's for each run of each line of the table.

    The lines are its algorithms, so that `collect_results --input_dir OUTPUT/table` (or `ratfast report OUTPUT`)
    prints all of them under its three ways of selection.
    """
    folder = context.output / TABLE
    shutil.rmtree(folder, ignore_errors=True)
    runs = _read_runs(plan, context)
    for method in METHODS:
        if not any(line["method"] == method.label for line in summary["rows"]):
            continue
        several = sum(other.label == method.label for other in METHODS) > 1
        label = f"{method.label}, {method.selection}" if several else method.label
        slug = f"{method.row}-{method.average or 'best'}".replace("/", "-")
        _write_records(method, label, slug, plan, context, runs, folder)


def _write_records(
    method: Method,
    label: str,
    slug: str,
    plan: Plan,
    context: Context,
    runs: Mapping[str, dict[str, Any]],
    folder: Path,
) -> None:
    def write(job: Job, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        changed = []
        for row in rows:
            arguments = {**row.get("args", run_arguments(context.recipe, job)), "algorithm": label}
            changed.append({**row, "args": arguments})
        place = folder / name
        place.mkdir(parents=True)
        records.write_rows(place, changed)
        records.write_text(place / records.DONE, "done\n")

    trials = plan.trial_seeds
    for trial_seed in trials:
        jobs = plan.members(trial_seed, method.sweep)
        if method.average in (None, "along"):
            for job in jobs:
                rows = (
                    records.read_rows(context.output / job.name)
                    if method.average is None
                    else [runs[job.name]["along"][method.row]["row"]]
                )
                write(job, f"{slug}-trial{trial_seed}-run{job.hparams_seed:02}", rows)
            continue
        dagger = method.average.endswith("dagger")
        if dagger and (len(trials) == 1 or trial_seed != trials[0]):
            continue
        key = method.average if dagger else average_key(method.average, trial_seed, len(trials))
        stored = context.output / "averages" / f"{key}.json"
        row = json.loads(stored.read_text(encoding="utf-8"))["row"]
        write(jobs[0], f"{slug}-trial{trial_seed}", [{"step": 0, **row}])
