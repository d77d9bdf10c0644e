"""The training loop: some updates of the head alone, then of everything, with evaluations in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ratfast.arena import Arena
from ratfast.averaging.along import AlongRun
from ratfast.data import Batch
from ratfast.errors import InputError
from ratfast.models import Classifier
from ratfast.optim import FusedAdam
from ratfast.train.evaluation import autocast
from ratfast.train.validation import Validator


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: updates in all.
        probe_steps: the first updates, of the classifier alone, on features of the frozen backbone.
        eval_every: evaluations are made after update 0, every so many updates, and after the last.
        lr: learning rate, constant.
        weight_decay: L2, added to the gradient (Adam, not AdamW).
        precision: `"float32"` or `"bfloat16"` (autocast; weights and optimizer state stay float32).
        head_graph_only: no gradients are computed for the backbone while the head alone is trained.
    """

    steps: int
    probe_steps: int
    eval_every: int
    lr: float
    weight_decay: float
    precision: str
    head_graph_only: bool = True


@dataclass
class Fitted:
    """What a training gives.

    Attributes:
        rows: one record per evaluation: `step`, mean `loss` since the last, and what `Validator` says:
            `env{i}_out_acc`, `val` (their mean), `val_loss`.
        best: the model's row at the evaluation with the highest `val` (the first such).
        best_row: that evaluation's record.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: Tensor | None = None
    best_row: dict[str, Any] = field(default_factory=dict)


def _head_loss(model: Classifier, batch: Batch) -> Tensor:
    # Without a graph through the backbone: a third of the work of differentiating it and throwing that away.
    with torch.no_grad():
        features = model.features(batch.images)
    return F.cross_entropy(model.head(features), batch.labels)


def _full_loss(model: Classifier, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.images), batch.labels)


def fit(
    model: Classifier,
    arena: Arena,
    loader: Iterable[Batch],
    validator: Validator,
    schedule: Schedule,
    on_step: Callable[[int], None],
    on_evaluation: Callable[[float], None],
    along: Mapping[str, AlongRun] | None = None,
) -> Fitted:
    """Trains `model` in place.

    Args:
        model: whose parameters live in `arena`.
        arena: holds the model.
        loader: gives the batch of every update.
        validator: evaluates the model.
        schedule: how long and how fast.
        on_step: called after each update with its number of images.
        on_evaluation: called after each evaluation with its `val`.
        along: averages that see the model after each update.

    Returns:
        The evaluations and the best row; the model itself is left as after the last update.

    Raises:
        InputError: the loss stopped being finite.
    """
    result = Fitted()
    loss_sum, loss_count = torch.zeros((), device=arena.device), 0
    optimizer = None
    model.train()
    for step, batch in zip(range(schedule.steps), loader, strict=False):
        probing = step < schedule.probe_steps
        if step in (0, schedule.probe_steps):
            # A new Adam at the end of the probe, as in the official release; it finds no gradients of before.
            arena.zero_grad()
            parameters = model.classifier.parameters() if probing else model.parameters()
            optimizer = FusedAdam(
                parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, zero_grads=True
            )
        with autocast(arena.device, schedule.precision):
            loss = (_head_loss if probing and schedule.head_graph_only else _full_loss)(model, batch)
        loss.backward()
        optimizer.step()  # which leaves the gradients zero
        loss_sum += loss.detach()
        loss_count += 1
        on_step(len(batch.labels))

        val_loss = None
        if step % schedule.eval_every == 0 or step == schedule.steps - 1:
            mean_loss = float(loss_sum) / loss_count
            if not torch.isfinite(loss_sum):
                raise InputError(
                    f"the loss is {mean_loss} after update {step + 1}, expected a finite number: "
                    f"lower hparams.lr or train.lr_scale (the learning rate was {schedule.lr:g})"
                )
            row = {"step": step, "loss": mean_loss, **validator(frozen=probing, step=step)}
            val_loss = row["val_loss"]
            result.rows.append(row)
            on_evaluation(row["val"])
            if result.best is None or row["val"] > result.best_row["val"]:
                result.best, result.best_row = arena.row_copy(), row
            loss_sum.zero_()
            loss_count = 0
        for average in (along or {}).values():
            average.update(model, step=step, val_loss=val_loss)
    return result
