"""The training loop: some updates of the head alone, then of everything, with evaluations in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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
from ratfast.train.interruption import Interruptions
from ratfast.train.snapshot import Snapshot, Snapshots, random_states, restore_random_states
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


class Batches(Protocol):
    """Training batches by the number of the step, such as a `ratfast.data.Loader`."""

    def batches(self, start: int = 0, stop: int | None = None) -> Iterable[Batch]:
        """Those of the steps from `start` to before `stop`."""
        ...


@dataclass
class Fitted:
    """What a training gives.

    Attributes:
        rows: one record per evaluation: `step`, mean `loss` since the last, and what `Validator` says:
            `env{i}_out_acc`, `val` (their mean), `val_loss`.
        best: the model's row at the evaluation with the highest `val` (the first such).
        best_row: that evaluation's record, one of `rows`.
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


class Training:
    """A training and how far it has come.

    Args:
        model: trained in place; its parameters live in `arena`.
        arena: holds the model.
        validator: evaluates the model.
        schedule: how long and how fast.
        along: averages that see the model after each update.

    Attributes:
        updates: how many have been made.
        fitted: the evaluations so far.
    """

    def __init__(
        self,
        model: Classifier,
        arena: Arena,
        validator: Validator,
        schedule: Schedule,
        along: Mapping[str, AlongRun] | None = None,
    ):
        self.updates = 0
        self.fitted = Fitted()
        self._model = model
        self._arena = arena
        self._validator = validator
        self._schedule = schedule
        self._along = dict(along or {})
        self._noted = 0  # updates after which evaluations and averages have been made
        self._loss_sum, self._loss_count = torch.zeros((), device=arena.device), 0
        self._optimizer: FusedAdam | None = None
        self._random = random_states(arena.device)  # as it was after the last update

    def run(
        self,
        batches: Batches,
        on_step: Callable[[int], None],
        on_evaluation: Callable[[float], None],
        snapshots: Snapshots | None = None,
    ) -> Fitted:
        """Trains to the end of the schedule.

        Args:
            batches: gives the batch of every update.
            on_step: called after each update with its number of images.
            on_evaluation: called after each evaluation with its `val`.
            snapshots: where to keep the state meanwhile, and at an interruption (SIGINT, SIGTERM).

        Returns:
            The evaluations and the best row; the model itself is left as after the last update.

        Raises:
            InputError: the loss stopped being finite.
        """
        self._arena.zero_grad()
        self._model.train()
        with Interruptions() as interruptions:
            try:
                self._note(interruptions, on_evaluation)
                steps = range(self.updates, self._schedule.steps)
                for step, batch in zip(steps, batches.batches(steps.start, steps.stop), strict=False):
                    self._update(step, batch, interruptions)
                    on_step(len(batch.labels))
                    self._note(interruptions, on_evaluation)
                    if snapshots is not None and snapshots.due():
                        snapshots.save(self.snapshot())
            except Exception:
                raise
            except BaseException:  # the user or the system wants the process to end
                if snapshots is not None:
                    with interruptions.held():
                        snapshots.save(self.snapshot())
                        snapshots.wait()
                raise
        return self.fitted

    def snapshot(self) -> Snapshot:
        """The state, between updates or in the middle of one."""
        rows = self.fitted.rows
        best = next((i for i, row in enumerate(rows) if row is self.fitted.best_row), None)
        values: dict[str, Any] = {"updates": self.updates, "noted": self._noted, "rows": rows, "best": best}
        tensors = {"model": self._arena.row, "loss_sum": self._loss_sum, **self._random}
        values["loss_count"] = self._loss_count
        if self.fitted.best is not None:
            tensors["best"] = self.fitted.best
        if self._optimizer is not None:
            for index, state in self._optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer:{index}:{key}": value for key, value in state.items()}
        values["along"] = {}
        for name, average in self._along.items():
            values["along"][name], rows_of = average.state()
            tensors |= {f"along:{name}:{key}": value for key, value in rows_of.items()}
        return Snapshot(values, tensors)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a `snapshot` of a training with the same arguments."""
        values, tensors = snapshot.values, snapshot.tensors
        self.updates, self._noted = values["updates"], values["noted"]
        self._arena.restore(tensors["model"])
        self._loss_sum.copy_(tensors["loss_sum"])
        self._loss_count = values["loss_count"]
        self._random = {name: tensors[name] for name in self._random}
        restore_random_states(self._random, self._arena.device)
        self.fitted.rows[:] = values["rows"]
        if values["best"] is not None:
            self.fitted.best_row = self.fitted.rows[values["best"]]
            self.fitted.best = tensors["best"].to(self._arena.device)
        if self.updates:
            self._optimizer = self._new_optimizer(self.updates - 1)
            self._restore_optimizer(_below("optimizer:", tensors))
        for name, average in self._along.items():
            if values["along"][name]["updates"]:
                average.restore(self._model, values["along"][name], _below(f"along:{name}:", tensors))

    def _update(self, step: int, batch: Batch, interruptions: Interruptions) -> None:
        if step in (0, self._schedule.probe_steps):
            # A new Adam at the end of the probe, as in the official release; it finds no gradients of before.
            self._arena.zero_grad()
            self._optimizer = self._new_optimizer(step)
        head_only = self._probing(step) and self._schedule.head_graph_only
        with autocast(self._arena.device, self._schedule.precision):
            loss = (_head_loss if head_only else _full_loss)(self._model, batch)
        loss.backward()
        with interruptions.held():
            assert self._optimizer is not None
            self._optimizer.step()  # which leaves the gradients zero
            self._loss_sum += loss.detach()
            self._loss_count += 1
            self._random = random_states(self._arena.device)
            self.updates = step + 1

    def _note(self, interruptions: Interruptions, on_evaluation: Callable[[float], None]) -> None:
        """What follows an update, once: an evaluation where it is due, and the averages along the run."""
        if self._noted == self.updates:
            return
        step, schedule = self.updates - 1, self._schedule
        row = None
        if step % schedule.eval_every == 0 or step == schedule.steps - 1:
            row = {"step": step, "loss": self._mean_loss()}
            row |= self._validator(frozen=self._probing(step), step=step)
        with interruptions.held():
            if row is not None:
                self.fitted.rows.append(row)
                if self.fitted.best is None or row["val"] > self.fitted.best_row["val"]:
                    self.fitted.best, self.fitted.best_row = self._arena.row_copy(), row
                self._loss_sum.zero_()
                self._loss_count = 0
            for average in self._along.values():
                average.update(self._model, step=step, val_loss=row["val_loss"] if row else None)
            self._noted = self.updates
        if row is not None:
            on_evaluation(row["val"])

    def _mean_loss(self) -> float:
        mean_loss = float(self._loss_sum) / self._loss_count
        if not torch.isfinite(self._loss_sum):
            raise InputError(
                f"the loss is {mean_loss} after update {self.updates}, expected a finite number: lower "
                f"hparams.lr or train.lr_scale (the learning rate was {self._schedule.lr:g})"
            )
        return mean_loss

    def _probing(self, step: int) -> bool:
        return step < self._schedule.probe_steps

    def _new_optimizer(self, step: int) -> FusedAdam:
        parameters = (self._model.classifier if self._probing(step) else self._model).parameters()
        schedule = self._schedule
        return FusedAdam(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, zero_grads=True)

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = [param for group in self._optimizer.param_groups for param in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(":")
            if tensor.dim():  # in the parameter's memory order, which a file does not keep
                tensor = torch.empty_like(parameters[int(index)], dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
