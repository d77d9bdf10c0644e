"""One training of the plan, from its starting weights to its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ratfast import models, protocol
from ratfast.arena import Arena
from ratfast.averaging.along import AlongRun
from ratfast.config import Recipe
from ratfast.models.folding import fold_batch_norm, worth_folding
from ratfast.train import records
from ratfast.train.context import Context
from ratfast.train.evaluation import correct_mask, input_dtype
from ratfast.train.fit import Schedule, Training
from ratfast.train.plan import Job, evaluation_interval, run_arguments
from ratfast.train.remote import StoreError
from ratfast.train.rows import start_along
from ratfast.train.snapshot import Snapshots
from ratfast.train.start import starting_model
from ratfast.train.state import snapshot_file
from ratfast.train.stopwatch import Stopwatch
from ratfast.train.validation import Validator
from ratfast.train.writer import Writer
from ratfast.version import __version__


def draw_hparams(job: Job, recipe: Recipe) -> dict[str, Any]:
    """Learning rate, weight decay and dropout of a run: the protocol's draw, scaled, unless the recipe fixes them."""
    drawn = protocol.hparams(job.hparams_seed, job.trial_seed)
    fixed = recipe.hparams
    return {
        "lr": drawn["lr"] * recipe.train.lr_scale if fixed.lr is None else fixed.lr,
        "weight_decay": drawn["weight_decay"] if fixed.weight_decay is None else fixed.weight_decay,
        "dropout": drawn["resnet_dropout"] if fixed.dropout is None else fixed.dropout,
        "batch_size": recipe.train.batch_size,
    }


def run_job(job: Job, context: Context) -> None:
    """Carries out one training; its folder appears when all of it is on disk.

    Raises:
        InputError: starting weights do not fit, an image cannot be decoded, or the loss stopped being finite.
    """
    stopwatch = Stopwatch()
    recipe, tasks = context.recipe, context.tasks
    switches = recipe.protocol.settled()
    torch.manual_seed(job.run_seed)  # the new head, and dropout
    hparams = draw_hparams(job, recipe)
    model = starting_model(job, context, hparams["dropout"])
    arena = Arena(model)
    schedule = Schedule(
        steps=job.steps,
        probe_steps=job.probe_steps,
        eval_every=evaluation_interval(recipe, job.dataset),
        lr=hparams["lr"],
        weight_decay=hparams["weight_decay"],
        precision=context.precision,
        head_graph_only=switches.probe_gradients == "head",
        cuda_graph=recipe.train.cuda_graph == "auto",
        compile=recipe.train.compile == "on",
    )
    progress = context.display.begin(job.name, job.steps)

    def say(line: str) -> None:
        context.display.say(f"{job.name}: {line}")

    batch_size = recipe.train.batch_size
    dtype = input_dtype(context.precision)
    along = {name: start_along(name, job.steps) for name in job.along}
    data_of = (job.dataset, job.test_env, job.trial_seed)
    with ExitStack() as open_files:
        if recipe.folds_batch_norm:
            _fold(model, job, context)
            open_files.callback(models.unfold_batch_norm, model)  # folded layers refer to themselves
        loader = open_files.enter_context(tasks.loader(*data_of, batch_size, model, job.run_seed, dtype))
        splits = tasks.evaluations(*data_of, loader, job.run_seed)
        validator = Validator(model, splits, context.precision, job.test_env)
        training = Training(model, arena, validator, schedule, along, stopwatch, say)
        snapshots = open_files.enter_context(_snapshots(job, context, schedule, hparams, say))
        earlier = snapshots.load()
        if earlier is not None:
            training.restore(earlier)
            progress.skip(training.updates)
            say(f"goes on after update {training.updates}")
        fitted = training.run(loader, progress.step, progress.evaluated, snapshots)
    speed = stopwatch.images / max(stopwatch.training_seconds, 1e-9)

    held_out = HeldOut(job, context) if job.test_env is not None and job.stage != "probe" else None
    last = fitted.rows[-1]
    if job.stage == "auxiliary":
        chosen = last  # recycled as it ended, as in the official release
    else:
        chosen = fitted.best_row
    tested: dict[str, float] = {}
    if held_out is not None:
        last |= held_out.row(model)
        if chosen is not last:
            arena.restore(fitted.best)
            chosen |= held_out.row(model)
        tested = held_out.tested(chosen, single=True)
    elif chosen is not last:
        arena.restore(fitted.best)
    record = {
        "stage": job.stage,
        "name": job.name,
        "dataset": job.dataset,
        "test_env": job.test_env,
        "trial_seed": job.trial_seed,
        "hparams_seed": job.hparams_seed,
        "hparams": hparams,
        "initialisation": job.source,
        **({"fused": dict(job.fused)} if job.fused else {}),
        "step": chosen["step"],
        "val": chosen["val"],
        **tested,
    }
    with records.new_run(context.output / job.name) as folder, Writer() as writer:
        records.write_rows(folder, domainbed_rows(fitted.rows, job, hparams, context))
        metadata = {"kind": "member", "model": models.describe(model), "run": record}
        writer.save(model.state_dict(), folder / records.CHECKPOINT, metadata)
        if along:
            record["along"] = _along_records(along, model, job, context, held_out, folder, writer)
        timing = {"seconds": stopwatch.seconds, "images_per_second": speed}
        records.write_json(folder / records.RUN, {**record, **timing})
    snapshots.forget()
    progress.end()
    say(f"from {job.start}, {speed:.0f} img/s, val {chosen['val']:.4f}, {stopwatch.seconds:.0f} s")


def _fold(model: models.Classifier, job: Job, context: Context) -> None:
    """Folds normalisations where that saves traffic in this run."""
    size = model.image_size
    example = torch.zeros(1, 3, size, size, device=context.device)
    domains = context.tasks.training_domains(job.dataset, job.test_env)
    batch = context.recipe.train.batch_size * len(domains)
    featurizer = model.featurizer
    fold_batch_norm(featurizer, worth_folding(featurizer, featurizer.pairs, example, batch))


def _snapshots(
    job: Job,
    context: Context,
    schedule: Schedule,
    hparams: Mapping[str, Any],
    say: Callable[[str], None],
) -> Snapshots:
    """Where a run keeps its state while it goes on: beside the folder that it will have, and in the store."""
    identity = {
        "job": asdict(job),
        "schedule": asdict(schedule),
        "hparams": dict(hparams),
        "backbone": context.recipe.model.backbone,
        "folds_batch_norm": context.recipe.folds_batch_norm,
        "version": __version__,
    }

    told = False

    def keep() -> None:
        nonlocal told
        try:
            context.store.keep_state(job)
            told = False
        except StoreError as error:  # the next state is another trial
            if not told:
                say(f"{error}; so far its state is in {context.output} alone")
            told = True

    interval = context.recipe.train.snapshot_seconds
    kept_elsewhere = context.store.remote is not None
    return Snapshots(snapshot_file(job, context.output), identity, interval, keep if kept_elsewhere else None)


class HeldOut:
    """The held-out domain's images, and what is said of a network on them.

    Args:
        job: a run that holds a domain out.
        context: what all runs share.
    """

    def __init__(self, job: Job, context: Context):
        self._job = job
        self._context = context

    def row(self, model: models.Classifier) -> dict[str, float]:
        """`env{i}_in_acc` and `env{i}_out_acc` of the held-out domain, and `test_all`, the accuracy on all of it."""
        job, tasks = self._job, self._context.tasks
        halves = tasks.split(job.dataset, job.test_env, job.trial_seed)
        images, labels = tasks.images(job.dataset, job.test_env, np.concatenate(halves))
        correct = correct_mask(model, images, labels, self._context.precision)
        kept = len(halves[0])
        accuracies = {
            f"env{job.test_env}_{half}_acc": int(part.sum()) / max(len(part), 1)
            for half, part in (("in", correct[:kept]), ("out", correct[kept:]))
        }
        return {**accuracies, "test_all": int(correct.sum()) / max(len(correct), 1)}

    def tested(self, row: Mapping[str, float], *, single: bool) -> dict[str, float]:
        """`test` as the protocol's switch `test_images` has it, for a single run or an average; and both kinds."""
        in_split = row[f"env{self._job.test_env}_in_acc"]
        split = single and self._context.recipe.protocol.settled().test_images == "split"
        test = in_split if split else row["test_all"]
        return {"test": test, "test_all": row["test_all"], "test_in_split": in_split}


def domainbed_rows(
    rows: list[dict[str, Any]], job: Job, hparams: Mapping[str, Any], context: Context
) -> list[dict[str, Any]]:
    """The rows of `results.jsonl` with all that DomainBed's own have and its scripts read.

    What was not evaluated is null: of the held-out domain, all but the steps that a selection may look at.
    """
    recipe = context.recipe
    per_epoch = context.tasks.steps_per_epoch(job.dataset, job.trial_seed, hparams["batch_size"])
    arguments = run_arguments(recipe, job)
    arguments |= {
        "output_dir": str(context.output / job.name),
        "holdout_fraction": recipe.data.holdout_fraction,
        "what_is_trainable": "classifier" if job.stage == "probe" else "all",
    }
    unknown = {}
    if job.test_env is not None:
        unknown = dict.fromkeys((f"env{job.test_env}_in_acc", f"env{job.test_env}_out_acc"))
    named = {"resnet_dropout" if name == "dropout" else name: value for name, value in hparams.items()}
    common = {"hparams": named, "args": arguments}
    return [{**unknown, **row, "epoch": row["step"] / per_epoch, **common} for row in rows]


def _along_records(
    along: Mapping[str, AlongRun],
    model: models.Classifier,
    job: Job,
    context: Context,
    held_out: HeldOut,
    folder: Path,
    writer: Writer,
) -> dict[str, Any]:
    """Begins to save the averages along a run and says how good they are; the model is left as the last of them."""
    found = {}
    splits = context.tasks.validation(job.dataset, job.test_env, job.trial_seed)
    validator = Validator(model, splits, context.precision, job.test_env)
    for name, average in along.items():
        model.load_state_dict(average.average())
        first, last, count = average.span
        row = {"step": last, **validator(), **held_out.row(model)}
        note = {"first_step": first, "last_step": last, "models": count}
        found[name] = {"row": row, "val": row["val"], **held_out.tested(row, single=True), **note}
        metadata = {
            "kind": "average",
            "method": name,
            "model": models.describe(model),
            "run": job.name,
            **note,
        }
        writer.save(model.state_dict(), folder / f"{name}.safetensors", metadata)
    return found
