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

import torch
from torch import Tensor

from ratfast import checkpoints, models
from ratfast.averaging import Pool, average_files, greedy_soup
from ratfast.train import records
from ratfast.train.contest import Contest
from ratfast.train.context import Context
from ratfast.train.evaluation import correct_mask, evaluating
from ratfast.train.job import RUN, HeldOut
from ratfast.train.plan import Job, Plan
from ratfast.train.rows import row_names
from ratfast.train.start import network_of
from ratfast.train.validation import PlainImages, Split, Validator


class Judge:
    """Evaluates averaged weights on the validation splits and on the held-out domain.

    Images are never augmented here, as in the official release. Nothing is built or decoded before it is first asked.

    Args:
        job: a member of the trial: it has the splits and the network.
        context: what all runs share.
    """

    def __init__(self, job: Job, context: Context):
        self._job = job
        self._context = context

    @cached_property
    def _model(self) -> models.Classifier:
        return network_of(self._job, self._context).to(
            self._context.device, memory_format=torch.channels_last
        )

    @cached_property
    def _splits(self) -> dict[Split, PlainImages]:
        job = self._job
        return self._context.tasks.validation(job.dataset, job.test_env, job.trial_seed)

    @cached_property
    def _validator(self) -> Validator:
        return Validator(self._model, self._splits, self._context.precision, self._job.test_env)

    @cached_property
    def _batches(self) -> list[PlainImages]:
        return [batch for split in self._splits.values() for batch in split.batches()]

    @cached_property
    def _contest(self) -> Contest:
        return Contest([len(batch.labels) for batch in self._batches])

    def load(self, weights: dict[str, Tensor]) -> models.Classifier:
        """The network with these weights."""
        self._model.load_state_dict(weights, strict=True)
        return self._model

    def pooled(self, weights: dict[str, Tensor]) -> float:
        """Accuracy over all validation images together: what the official greedy selection accepts by.

        Of weights that cannot equal the best so far it is known only that they do not, and what is returned is less.
        """
        model, precision = self.load(weights).eval(), self._context.precision

        def correct(number: int) -> int:
            batch = self._batches[number]
            return int(correct_mask(model, batch.images, batch.labels, precision).sum())

        with evaluating(model, self._context.device, precision):
            return self._contest.score(correct)

    def record(self, weights: dict[str, Tensor]) -> dict[str, Any]:
        """`val` (mean over training domains), `test` (all of the held-out domain), and the `row` they are from."""
        model = self.load(weights)
        held_out = HeldOut(self._job, self._context)
        row = {**self._validator(), **held_out.row(model)}
        return {"val": row["val"], **held_out.tested(row, single=False), "row": row}

    def effort(self) -> dict[str, int]:
        """How many images all calls of `pooled` evaluated, and how many they did not have to; empty without calls."""
        if "_contest" not in vars(self):
            return {}
        return {"evaluated_images": self._contest.evaluated, "spared_images": self._contest.spared}


_PREFIXES = {"ratatouille": ("target", ""), "soups": ("plain", "soup-")}


def average_trials(plan: Plan, context: Context) -> dict[str, Any]:
    """Averages the members of every trial and writes the results below `averages/`.

    With one trial the methods are `uniform` and `greedy`, and `soup-uniform` and `soup-greedy` without auxiliary
    weights; with more, each trial has its own (`uniform_trial1`) and `dagger` averages the members of all trials, as
    in the paper. Its `val` is that on the first trial's splits, of which the members of other trials have trained on
    parts.

    Args:
        plan: the trainings, all done.
        context: what they share.

    Returns:
        By method: `val`, `test`, `members` (names), `row`, `seconds` and `file`.
    """
    trials = plan.trial_seeds
    results = {}
    for row in row_names(context.recipe.train.rows):
        if row not in _PREFIXES:
            continue
        sweep, prefix = _PREFIXES[row]
        for trial_seed in trials:
            jobs = plan.members(trial_seed, sweep)
            judge = Judge(jobs[0], context)
            for name, choose in (("uniform", _all), ("greedy", _greedy)):
                method = average_key(prefix + name, trial_seed, len(trials))
                results[method] = _average(method, jobs, judge, context, choose)
        if len(trials) > 1:
            jobs = [job for trial_seed in trials for job in plan.members(trial_seed, sweep)]
            method = prefix + "dagger"
            results[method] = _average(method, jobs, Judge(jobs[0], context), context, _all)
    return results


def average_key(name: str, trial_seed: int, trials: int) -> str:
    """What an average of one trial is called."""
    return f"{name}_trial{trial_seed}" if trials > 1 else name


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
    record |= judge.effort() if choose is _greedy else {}
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
