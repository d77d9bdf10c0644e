"""One training of the plan, from its starting weights to its folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ratfast import checkpoints, models, protocol
from ratfast.arena import Arena
from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.train.evaluation import accuracy
from ratfast.train.fit import Schedule, fit
from ratfast.train.plan import PRETRAINED, Job, Plan, evaluation_interval
from ratfast.train.progress import Display
from ratfast.train.tasks import Tasks

RUN = "run.json"


@dataclass(frozen=True)
class Context:
    """What all trainings of a recipe share.

    Attributes:
        recipe: what to do.
        tasks: its data sets.
        device: where to train.
        precision: `"float32"` or `"bfloat16"`.
        output: the output folder.
        display: what a person sees.
    """

    recipe: Recipe
    tasks: Tasks
    device: torch.device
    precision: str
    output: Path
    display: Display


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


def build_model(job: Job, context: Context, dropout: float) -> models.Classifier:
    """The network of a run with its starting weights, on the device, channels-last."""
    recipe = context.recipe
    weights = recipe.model.initial_weights()
    if job.source != PRETRAINED:
        own = context.output / job.source / records.CHECKPOINT
        weights = own if own.is_file() else Path(job.source)
    dataset = context.tasks.datasets[job.dataset]
    model = models.build(
        recipe.model.backbone,
        len(dataset.classes),
        dropout=dropout,
        weights=weights,
        image_size=recipe.data.image_size,
        classes=dataset.classes,
    )
    if job.probe is not None:
        load_head(model, context.output / job.probe / records.CHECKPOINT)
    return model.to(context.device, memory_format=torch.channels_last)


def load_head(model: models.Classifier, path: Path) -> None:
    """Takes the classifier's weight and bias from a probe's checkpoint."""
    state = checkpoints.load(path)
    prefix = "classifier."
    head = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    model.classifier.load_state_dict(head)


def run_job(job: Job, context: Context) -> None:
    """Carries out one training; its folder appears when all of it is on disk.

    Raises:
        InputError: starting weights do not fit, an image cannot be decoded, or the loss stopped being finite.
    """
    started = time.perf_counter()
    recipe, tasks = context.recipe, context.tasks
    torch.manual_seed(job.run_seed)  # the new head, and dropout
    hparams = draw_hparams(job, recipe)
    model = build_model(job, context, hparams["dropout"])
    arena = Arena(model)
    schedule = Schedule(
        steps=job.steps,
        probe_steps=job.probe_steps,
        eval_every=evaluation_interval(recipe, job.dataset),
        lr=hparams["lr"],
        weight_decay=hparams["weight_decay"],
        precision=context.precision,
    )
    progress = context.display.begin(job.name, job.steps)
    validation = tasks.validation(job.dataset, job.test_env, job.trial_seed)
    batch_size = recipe.train.batch_size
    dtype = torch.bfloat16 if context.precision == "bfloat16" else torch.float32
    with tasks.loader(
        job.dataset, job.test_env, job.trial_seed, batch_size, model, job.run_seed, dtype
    ) as loader:
        fitted = fit(model, arena, loader, validation, schedule, progress.step, progress.evaluated)

    if job.stage == "auxiliary":
        chosen = fitted.rows[-1]  # recycled as it ended, as in the official release
    else:
        chosen = fitted.best_row
        arena.restore(fitted.best)
    test = None
    if job.stage == "target":
        test = accuracy(model, *tasks.images(job.dataset, job.test_env), context.precision)
    seconds = time.perf_counter() - started
    record = {
        "stage": job.stage,
        "name": job.name,
        "dataset": job.dataset,
        "test_env": job.test_env,
        "trial_seed": job.trial_seed,
        "hparams_seed": job.hparams_seed,
        "hparams": hparams,
        "initialisation": job.source,
        "step": chosen["step"],
        "val": chosen["val"],
        "test": test,
    }
    with records.new_run(context.output / job.name) as folder:
        records.write_rows(folder, fitted.rows)
        metadata = {"kind": "member", "model": models.describe(model), "run": record}
        checkpoints.save(model.state_dict(), folder / records.CHECKPOINT, metadata=metadata)
        timing = {"seconds": seconds, "images_per_second": progress.images_per_second}
        records.write_json(folder / RUN, {**record, **timing})
    line = f"{job.name}: from {job.source}, {progress.images_per_second:.0f} img/s, val {chosen['val']:.4f}"
    progress.end()
    context.display.say(f"{line}, {seconds:.0f} s")


def check_sources(plan: Plan, recipe: Recipe) -> None:
    """Checks, before hours of training, that the weights that runs start from can be read and fit the backbone.

    Args:
        plan: whose runs are looked at.
        recipe: names the backbone and the files.

    Raises:
        InputError: a file is missing or of another architecture; names the recipe's key.
    """
    try:
        model = models.build(recipe.model.backbone, 1, weights=recipe.model.initial_weights())
    except InputError as error:
        raise InputError(f"model.weights: {error}") from error
    own = {job.name for job in plan.jobs}
    for source in sorted({job.source for job in plan.jobs} - own - {PRETRAINED}):
        try:
            models.load_featurizer(model.featurizer, source)
        except InputError as error:
            raise InputError(f"model.aux_weights: {error}") from error
