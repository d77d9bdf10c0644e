"""The training loop: some updates of the head alone, then of everything, with evaluations in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from ratfast.arena import Arena
from ratfast.averaging.along import AlongRun
from ratfast.data import Batch
from ratfast.errors import InputError
from ratfast.models import Classifier
from ratfast.optim import FusedAdam
from ratfast.train.evaluation import autocast
from ratfast.train.interruption import Interruptions
from ratfast.train.loss import RunningLoss
from ratfast.train.snapshot import Snapshot, Snapshots, random_states, restore_random_states
from ratfast.train.step import EagerStep, GraphedStep, Step, compiled, full_loss, head_loss
from ratfast.train.stopwatch import Stopwatch
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
        cuda_graph: on CUDA, updates are captured into a graph and replayed.
        compile: updates of the whole network are compiled.
    """

    steps: int
    probe_steps: int
    eval_every: int
    lr: float
    weight_decay: float
    precision: str
    head_graph_only: bool = True
    cuda_graph: bool = False
    compile: bool = False


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


class Training:
    """A training and how far it has come.

    Args:
        model: trained in place; its parameters live in `arena`.
        arena: holds the model.
        validator: evaluates the model.
        schedule: how long and how fast.
        along: averages that see the model after each update.
        stopwatch: counts images and time.
        say: told, in a sentence, what is out of the ordinary.

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
        stopwatch: Stopwatch | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.updates = 0
        self.fitted = Fitted()
        self._model = model
        self._arena = arena
        self._validator = validator
        self._schedule = schedule
        self._along = dict(along or {})
        self._noted = 0  # updates after which evaluations and averages have been made
        self._loss = RunningLoss(arena.device)
        self._optimizer: FusedAdam | None = None
        self._step: Step | None = None
        self._stopwatch = stopwatch or Stopwatch()
        self._say = say
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
            snapshots: where to keep the state meanwhile, and at an interruption (SIGINT, SIGTERM, SIGHUP).

        Returns:
            The evaluations and the best row; the model itself is left as after the last update.

        Raises:
            InputError: the loss stopped being finite.
        """
        self._arena.zero_grad()
        self._model.train()
        self._stopwatch.training_begins()
        with Interruptions() as interruptions:
            try:
                self._note(interruptions, on_evaluation)
                steps = range(self.updates, self._schedule.steps)
                for step, batch in zip(steps, batches.batches(steps.start, steps.stop), strict=False):
                    self._update(step, batch, interruptions)
                    self._stopwatch.images += len(batch.labels)
                    on_step(len(batch.labels))
                    self._note(interruptions, on_evaluation)
                    if not self._loss.seems_finite():
                        self._refuse_loss()
                    if snapshots is not None and snapshots.due():
                        if not self._loss.is_finite():
                            self._refuse_loss()
                        snapshots.save(self.snapshot())
            except Exception:
                raise
            except BaseException:  # the user or the system wants the process to end
                if snapshots is not None and self._loss.is_finite():
                    with interruptions.held():
                        snapshots.save(self.snapshot())
                        snapshots.wait()
                raise
            finally:
                self._step = None  # it refers to this object, and may hold a CUDA graph
        return self.fitted

    def snapshot(self) -> Snapshot:
        """The state, between updates or in the middle of one."""
        rows = self.fitted.rows
        best = next((i for i, row in enumerate(rows) if row is self.fitted.best_row), None)
        values: dict[str, Any] = {"updates": self.updates, "noted": self._noted, "rows": rows, "best": best}
        values |= {"loss_count": self._loss.count, "spent": self._stopwatch.state()}
        tensors = {"model": self._arena.row, "loss_sum": self._loss.sum, **self._random}
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
        self._loss.sum.copy_(tensors["loss_sum"])
        self._loss.count = values["loss_count"]
        self._stopwatch.restore(values["spent"])
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
            self._optimizer, self._step = self._new_optimizer(step), None
        if self._step is None:
            self._step = self._new_step(self._probing(step))
        self._step.prepare(batch)
        with interruptions.held():
            self._step.apply()
            self._loss.count += 1
            self._random = random_states(self._arena.device)
            self.updates = step + 1

    def _note(self, interruptions: Interruptions, on_evaluation: Callable[[float], None]) -> None:
        """What follows an update, once: an evaluation where it is due, and the averages along the run."""
        if self._noted == self.updates:
            return
        step, schedule = self.updates - 1, self._schedule
        row = None
        if step % schedule.eval_every == 0 or step == schedule.steps - 1:
            row = {"step": step, "loss": self._loss.mean()}
            if not math.isfinite(row["loss"]):
                self._refuse_loss()
            row |= self._validator(frozen=self._probing(step), step=step)
        with interruptions.held():
            if row is not None:
                self.fitted.rows.append(row)
                if self.fitted.best is None or row["val"] > self.fitted.best_row["val"]:
                    self.fitted.best, self.fitted.best_row = self._arena.row_copy(), row
                self._loss.clear()
            for average in self._along.values():
                average.update(self._model, step=step, val_loss=row["val_loss"] if row else None)
            self._noted = self.updates
        if row is not None:
            on_evaluation(row["val"])

    def _refuse_loss(self) -> NoReturn:
        raise InputError(
            f"the loss is {self._loss.mean()} after update {self.updates}, expected a finite number: lower "
            f"hparams.lr or train.lr_scale (the learning rate was {self._schedule.lr:g})"
        )

    def _probing(self, step: int) -> bool:
        return step < self._schedule.probe_steps

    def _new_optimizer(self, step: int) -> FusedAdam:
        parameters = (self._model.classifier if self._probing(step) else self._model).parameters()
        options = {"lr": self._schedule.lr, "weight_decay": self._schedule.weight_decay}
        return FusedAdam(parameters, **options, zero_grads=True, capturable=self._graphed)

    def _new_step(self, probing: bool) -> Step:
        loss_of = head_loss if probing and self._schedule.head_graph_only else full_loss
        if self._schedule.compile and not probing:
            loss_of = compiled(full_loss)

        def compute(batch: Batch) -> Tensor:
            with autocast(self._arena.device, self._schedule.precision):
                return loss_of(self._model, batch)

        assert self._optimizer is not None
        step = EagerStep(compute, self._optimizer, self._loss.sum)
        return GraphedStep(step, self._say) if self._graphed else step

    @property
    def _graphed(self) -> bool:
        return self._schedule.cuda_graph and self._arena.device.type == "cuda"

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
