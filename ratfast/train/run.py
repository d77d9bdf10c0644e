"""A whole recipe: data, probes, auxiliary and target fine-tunings, averages, summary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ratfast import config
from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train import host, records
from ratfast.train.averages import average_trials, forget_averages
from ratfast.train.job import RUN, Context, check_sources, run_job
from ratfast.train.left_out import summary_of, write_left_out
from ratfast.train.plan import Plan, make_plan
from ratfast.train.progress import Display
from ratfast.train.tasks import Tasks

# What may differ between the command that began a recipe and the one that continues it: where and with what it is
# carried out, not what.
_FREE_KEYS = ("output.dir", "data.dir", "train.threads", "train.device")


def run(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Carries out `recipe`; what an earlier, interrupted call finished is not done again.

    Args:
        recipe: what to do.
        console: where progress is shown; standard error by default.

    Returns:
        The content of `summary.json`: `target`, `test_domain`, `members` (name, initialisation, `val`, `test`,
        checkpoint), `mean_of_members`, `best_single`, `averages` (by method: `val`, `test`, members used,
        seconds, file) and `seconds` by stage; accuracies are fractions. `val` is the mean over the training domains.
        With `data.on_bad_image = "skip"` also `left_out`: how many images, and the file that lists them.

    Raises:
        InputError: the recipe, a data set or a checkpoint is wrong.
    """
    recipe = config.validated(recipe)
    device = host.find_device(recipe.train.device)
    host.prepare(device, recipe.train.threads)
    output = Path(recipe.output.dir)
    with Display(console) as display:
        tasks = Tasks(recipe, device, display)
        plan = make_plan(recipe, tasks.datasets)
        for dataset, test_env in sorted({(job.dataset, job.test_env) for job in plan.jobs}, key=str):
            tasks.check_split(dataset, test_env)
        if not all(records.is_done(output / job.name) for job in plan.jobs):
            check_sources(plan, recipe)
        with records.locked_output(output), _settled_recipe(recipe, output, plan):
            precision = host.find_precision(recipe.train.precision, device)
            context = Context(recipe, tasks, device, precision, output, display)
            if tasks.left_out:
                write_left_out(output, tasks.left_out)
            _train(plan, context)
            summary = summarise(plan, context, average_trials(plan, context))
            records.write_json(output / records.SUMMARY, summary)
    return summary


def _train(plan: Plan, context: Context) -> None:
    """Carries out the runs that are not done yet."""
    if not all(records.is_done(context.output / job.name) for job in plan.jobs):
        forget_averages(context.output)
    context.display.expect(sum(job.steps for job in plan.jobs))
    for job in plan.jobs:
        if records.is_done(context.output / job.name):
            context.display.advance(job.steps)
            context.display.say(f"{job.name}: already done")
        else:
            run_job(job, context)


@contextlib.contextmanager
def _settled_recipe(recipe: Recipe, output: Path, plan: Plan) -> Iterator[None]:
    """Stores the recipe in a new output folder; in a used one, checks that it is the same.

    A recipe that fails before any of its runs is done is taken away again, so that a corrected one finds the
    folder as new.
    """
    path = output / records.RECIPE
    if path.is_file():
        changed = [key for key in config.differences(config.load(path), recipe) if key not in _FREE_KEYS]
        if changed:
            raise InputError(
                f"the output folder {output} holds runs of another recipe (differing in {', '.join(changed)}), "
                "expected the same recipe or another --output"
            )
        yield
        return
    records.write_text(path, recipe.to_toml())
    try:
        yield
    except BaseException:
        if not any(records.is_done(output / job.name) for job in plan.jobs):
            path.unlink(missing_ok=True)
        raise


def summarise(plan: Plan, context: Context, averages: dict[str, Any]) -> dict[str, Any]:
    """Collects what every run left into the content of `summary.json`.

    Args:
        plan: the trainings.
        context: what they share.
        averages: by method, from `average_trials`.
    """
    output = context.output
    runs = {job.name: json.loads((output / job.name / RUN).read_text(encoding="utf-8")) for job in plan.jobs}
    members = [
        {
            "name": job.name,
            "initialisation": job.source,
            "val": runs[job.name]["val"],
            "test": runs[job.name]["test"],
            "checkpoint": str(output / job.name / records.CHECKPOINT),
        }
        for job in plan.jobs
        if job.stage == "target"
    ]
    seconds: dict[str, float] = {}
    for job in plan.jobs:
        seconds[job.stage] = seconds.get(job.stage, 0.0) + runs[job.name]["seconds"]
    target = context.tasks.datasets[context.recipe.data.target]
    left_out = context.tasks.left_out
    return {
        "target": target.name,
        "test_domain": target.domains[plan.test_env].name,
        "members": members,
        "mean_of_members": {
            key: sum(member[key] for member in members) / len(members) for key in ("val", "test")
        },
        "best_single": max(members, key=lambda member: member["val"]),
        "averages": averages,
        "seconds": seconds | {"averages": sum(record["seconds"] for record in averages.values())},
        **({"left_out": summary_of(output, left_out)} if left_out else {}),
    }
