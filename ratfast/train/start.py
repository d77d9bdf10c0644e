"""The weights that a run starts from, and whether weights from elsewhere are fit for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ratfast import checkpoints, models
from ratfast.analysis.distances import UNRELATED, geometry
from ratfast.averaging.statistics import statistics_difference
from ratfast.checkpoints.names import is_statistic_name
from ratfast.config import Recipe
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.train.context import Context
from ratfast.train.plan import FUSED, PRETRAINED, Job, Plan
from ratfast.train.progress import View


def network_of(job: Job, context: Context, dropout: float = 0.0) -> models.Classifier:
    """The network of a run with the pre-trained weights and a new head, on the CPU."""
    recipe = context.recipe
    dataset = context.tasks.datasets[job.dataset]
    return models.build(
        recipe.model.backbone,
        len(dataset.classes),
        dropout=dropout,
        weights=recipe.model.initial_weights(),
        image_size=recipe.data.image_size,
        classes=dataset.classes,
    )


def starting_model(job: Job, context: Context, dropout: float) -> models.Classifier:
    """The network of a run with its starting weights, on the device, channels-last.

    As in the official release, auxiliary weights replace parameters only: batch-norm statistics are those of the
    pre-training, the same in every run, so that the runs can be averaged.
    """
    model = network_of(job, context, dropout)
    if job.source == FUSED:
        _interpolate(model, job, context)
    elif job.source != PRETRAINED:
        models.load_featurizer(model.featurizer, _file(job.source, context), buffers=False)
    if job.probe is not None:
        load_head(model, context.output / job.probe / records.CHECKPOINT)
    return model.to(context.device, memory_format=torch.channels_last)


def load_head(model: models.Classifier, path: Path) -> None:
    """Takes the classifier's weight and bias from a probe's checkpoint."""
    state = checkpoints.load(path)
    prefix = "classifier."
    head = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    model.classifier.load_state_dict(head)


def _file(source: str, context: Context) -> Path:
    own = context.output / source / records.CHECKPOINT
    return own if own.is_file() else Path(source)


@torch.no_grad()
def _interpolate(model: models.Classifier, job: Job, context: Context) -> None:
    """Fusing: `sum_i lambda_i * theta_i` over the featurizer's parameters, added up as the official release does."""
    parameters = dict(model.featurizer.named_parameters())
    pretrained = {name: value.detach().clone() for name, value in parameters.items()}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for source, coefficient in job.fused:
        if source != PRETRAINED:
            models.load_featurizer(model.featurizer, _file(source, context), buffers=False)
        for name, value in sums.items():
            value += coefficient * (pretrained if source == PRETRAINED else parameters)[name]
    for name, value in parameters.items():
        value.copy_(sums[name])


def check_sources(plan: Plan, recipe: Recipe, display: View) -> None:
    """Checks, before hours of training, that the weights that runs start from can be read and fit the backbone.

    Warns of those that seem not to come from the recipe's pre-training, and says what of a file is left out.

    Args:
        plan: whose runs are looked at.
        recipe: names the backbone and the files.
        display: told what is left out.

    Raises:
        InputError: a file is missing or of another architecture; names the recipe's key.
    """
    try:
        model = models.build(
            recipe.model.backbone,
            1,
            weights=recipe.model.initial_weights(),
            image_size=recipe.data.image_size,
        )
    except InputError as error:
        raise InputError(f"model.weights: {error}") from error
    own = {job.name for job in plan.jobs}
    used = {job.source for job in plan.jobs} | {source for job in plan.jobs for source, _ in job.fused}
    given = sorted(used - own - {PRETRAINED, FUSED})
    pretrained = {name: value.clone() for name, value in model.featurizer.network.state_dict().items()}
    for source in given:
        try:
            left_out = models.load_featurizer(model.featurizer, source)
        except InputError as error:
            raise InputError(f"model.aux_weights: {error}") from error
        if left_out:
            display.say(f"{source}: {left_out}")
        _warn_of_other_pretraining(pretrained, model.featurizer.network.state_dict(), source)


def _warn_of_other_pretraining(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> None:
    """Warns where weights are as far from the pre-trained ones as independent networks, or statistics differ."""
    matrices = [name for name, value in ours.items() if value.ndim >= 2 and value.is_floating_point()]
    rows = [[state[name].double().flatten() for name in matrices] for state in (ours, theirs)]
    gram = np.array([[float(sum(a @ b for a, b in zip(x, y, strict=True))) for y in rows] for x in rows])
    relative = geometry(gram, gram, ["pre-trained", source]).relative[0, 1]
    if relative >= UNRELATED:
        warnings.warn(
            f"{source} is as far from the pre-trained weights as an independent network ({relative:.2f} of "
            "sqrt(|a|^2 + |b|^2)), so it seems to come from another pre-training, and an average with it is not "
            "expected to work",
            stacklevel=2,
        )
        return
    statistics = [
        {name: value.double().numpy() for name, value in state.items() if is_statistic_name(name)}
        for state in (ours, theirs)
    ]
    worst = statistics_difference(statistics)
    if worst is not None:
        warnings.warn(
            f"{source} has other batch-norm statistics than the pre-trained weights ({worst.name} by up to "
            f"{worst.distance:.2g} of its largest value): it was fine-tuned without freezing them, or from another "
            "pre-training; the pre-trained statistics are kept, as averages need them to be the same in every run",
            stacklevel=2,
        )
