"""From the members of each trial to averaged weights on disk: uniform, greedy, and uniform over all trials.

Beside the weights of each average, `averages/METHOD.json` keeps its record; where both are there, neither is made
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ratfast import checkpoints, models
from ratfast.averaging import Pool, average_files, greedy_soup
from ratfast.train import records
from ratfast.train.evaluation import accuracy
from ratfast.train.fit import ValidationSet, Validator
from ratfast.train.job import RUN, Context, build_model
from ratfast.train.plan import Job, Plan


class Judge:
    """Evaluates averaged weights on the validation splits and on the held-out domain.

    Nothing is built or decoded before it is first asked.

    Args:
        job: a member of the trial: it has the splits and the network.
        context: what all runs share.
    """

    def __init__(self, job: Job, context: Context):
        self._job = job
        self._context = context

    @cached_property
    def _model(self) -> models.Classifier:
        return build_model(self._job, self._context, dropout=0.0)

    @cached_property
    def _validation(self) -> ValidationSet:
        return self._context.tasks.validation(self._job.dataset, self._job.test_env, self._job.trial_seed)

    def load(self, weights: dict[str, Tensor]) -> models.Classifier:
        """The network with these weights."""
        self._model.load_state_dict(weights, strict=True)
        return self._model

    def pooled(self, weights: dict[str, Tensor]) -> float:
        """Accuracy over all validation images together: what the official greedy selection accepts by."""
        validator = Validator(self.load(weights), self._validation, self._context.precision)
        images = sum(len(labels) for _, labels in self._validation.values())
        # From whole numbers, so that soups that are equally good compare equal.
        return sum(validator.correct(frozen=False).values()) / images

    def record(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """`val` (mean over training domains) and `test` (all images of the held-out domain)."""
        model = self.load(weights)
        val = Validator(model, self._validation, self._context.precision)(frozen=False)["val"]
        images = self._context.tasks.images(self._job.dataset, self._job.test_env)
        return {"val": val, "test": accuracy(model, *images, self._context.precision)}


def average_trials(plan: Plan, context: Context) -> dict[str, Any]:
    """Averages the members of every trial and writes the results below `averages/`.

    With one trial the methods are `uniform` and `greedy`; with more, each trial has its own (`uniform_trial1`) and
    `dagger` averages the members of all trials, as in the paper. Its `val` is that on the first trial's splits, of
    which the members of other trials have trained on parts.

    Args:
        plan: the trainings, all done.
        context: what they share.

    Returns:
        By method: `val`, `test`, `members` (names), `seconds` and `file`.
    """
    trials = plan.trial_seeds
    results = {}
    for trial_seed in trials:
        suffix = f"_trial{trial_seed}" if len(trials) > 1 else ""
        jobs = plan.members(trial_seed)
        judge = Judge(jobs[0], context)
        results["uniform" + suffix] = _average("uniform" + suffix, jobs, judge, context, _all)
        results["greedy" + suffix] = _average("greedy" + suffix, jobs, judge, context, _greedy)
    if len(trials) > 1:
        jobs = [job for trial_seed in trials for job in plan.members(trial_seed)]
        results["dagger"] = _average("dagger", jobs, Judge(jobs[0], context), context, _all)
    return results


def forget_averages(output: Path) -> None:
    """Removes the records of averages, which are to be made again once members have been trained again."""
    for path in (output / "averages").glob("*.json"):
        path.unlink()


def _average(
    method: str,
    jobs: list[Job],
    judge: Judge,
    context: Context,
    choose: Callable[[list[Job], Judge, Context], list[Job]],
) -> dict[str, Any]:
    """The average of the members that `choose` takes, each with equal weight: its file and its record."""
    path = context.output / "averages" / f"{method}.safetensors"
    stored = path.with_suffix(".json")
    if path.is_file() and stored.is_file():
        return {**json.loads(stored.read_text(encoding="utf-8")), "file": str(path)}
    started = time.perf_counter()
    chosen = choose(jobs, judge, context)
    path.parent.mkdir(exist_ok=True)
    average_files([_checkpoint(job, context) for job in chosen], path, method=method)
    record: dict[str, Any] = judge.record(checkpoints.load(path))
    record["members"] = [job.name for job in chosen]
    record["seconds"] = time.perf_counter() - started
    records.write_json(stored, record)
    context.display.say(
        f"averages/{method}: {len(chosen)} of {len(jobs)} members, val {record['val']:.4f}, {record['seconds']:.0f} s"
    )
    return {**record, "file": str(path)}


def _checkpoint(job: Job, context: Context) -> Path:
    return context.output / job.name / records.CHECKPOINT


def _all(jobs: list[Job], judge: Judge, context: Context) -> list[Job]:
    return jobs


def _greedy(jobs: list[Job], judge: Judge, context: Context) -> list[Job]:
    """The members that a greedy soup keeps, tried by falling validation accuracy of their runs."""

    def stored_val(job: Job) -> float:
        return json.loads((context.output / job.name / RUN).read_text(encoding="utf-8"))["val"]

    tried = 0

    def pooled(weights: dict[str, Tensor]) -> float:
        nonlocal tried
        score = judge.pooled(weights)
        tried += 1
        context.display.count("choosing members greedily", tried, len(jobs))
        return score

    ranked = sorted(jobs, key=stored_val, reverse=True)  # stable: ties keep the order of the runs
    pool = Pool.open([_checkpoint(job, context) for job in ranked])
    soup = greedy_soup(pool, pooled, order=range(len(ranked)))
    return [ranked[index] for index in soup.members]
