"""From the members of each trial to averaged weights on disk: uniform, greedy, and uniform over all trials.

Beside the weights of each average, `averages/METHOD.json` keeps its record; where both are there, neither is made
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
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
from ratfast.train.job import HeldOut
from ratfast.train.plan import Average, Job, Plan
from ratfast.train.start import network_of
from ratfast.train.state import average_file, read_run
from ratfast.train.store import Store
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


def make_average(average: Average, context: Context) -> None:
    """Averages members with equal weights, and says how good the average is."""
    started = time.perf_counter()
    judge = Judge(average.members[0], context)
    chosen = _greedy(average.members, judge, context) if average.greedy else average.members
    path = average_file(average, context.output)
    path.parent.mkdir(exist_ok=True)
    average_files([_checkpoint(job, context) for job in chosen], path, method=average.method)
    record: dict[str, Any] = judge.record(checkpoints.load(path))
    record |= judge.effort() if average.greedy else {}
    record["members"] = [job.name for job in chosen]
    record["seconds"] = time.perf_counter() - started
    records.write_json(path.with_suffix(".json"), record)
    context.display.say(
        f"{average.name}: {len(chosen)} of {len(average.members)} members, val {record['val']:.4f}, "
        f"{record['seconds']:.0f} s"
    )


def read_averages(plan: Plan, output: Path) -> dict[str, Any]:
    """What was recorded of each average, all made.

    Args:
        plan: names them.
        output: the output folder.

    Returns:
        By method: `val`, `test`, `members` (names), `row`, `seconds` and `file`.
    """
    found = {}
    for average in plan.averages:
        path = average_file(average, output)
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        found[average.method] = {**record, "file": str(path)}
    return found


def forget_averages(plan: Plan, store: Store) -> None:
    """Removes the records of averages, which are to be made again once members have been trained again."""
    for path in (store.output / "averages").glob("*.json"):
        path.unlink()
    store.forget(f"{average.name}.json" for average in plan.averages)


def _checkpoint(job: Job, context: Context) -> Path:
    return context.output / job.name / records.CHECKPOINT


def _greedy(jobs: Sequence[Job], judge: Judge, context: Context) -> list[Job]:
    """The members that a greedy soup keeps, tried by falling validation accuracy of their runs."""

    def stored_val(job: Job) -> float:
        return read_run(job, context.output)["val"]

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
