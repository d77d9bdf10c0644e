"""Averages of a model along its training run, kept while it trains.

Each has `update(model, step=..., val_loss=...)` and `average()`. What is kept is one row for the whole model (SWAD
and LAWA need a few), written in one pass over the model for each update. The same rules over files of checkpoints
are in `ratfast.averaging.trajectory`, where the formulas stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ratfast.averaging import trajectory
from ratfast.averaging.along_rows import Row, RowState, Template, merged
from ratfast.averaging.members import Member, open_member
from ratfast.errors import InputError

BUFFERS = ("latest", "average")


class AlongRun:
    """What all averages along a run share; not for use by itself.

    Averages are held in the model's element types, those of half precision in float32: the small steps of a slow
    average would round to nothing in bfloat16.

    Args:
        buffers: "latest": buffers (batch-norm statistics, integers) are those of the latest model in the average;
            "average": floating ones are averaged like parameters.
        device: where the average is kept; by default where the model is.

    Attributes:
        updates: how often `update` was called.
    """

    def __init__(self, *, buffers: str = "latest", device: torch.device | str | None = None):
        if buffers not in BUFFERS:
            raise InputError(f"buffers is {buffers!r}, expected one of {', '.join(BUFFERS)}")
        self.updates = 0
        self._policy = buffers
        self._device = None if device is None else torch.device(device)
        self._template: Template | None = None

    @torch.no_grad()
    def update(
        self,
        model: nn.Module | Mapping[str, Tensor],
        *,
        step: int | None = None,
        val_loss: float | None = None,
    ) -> None:
        """Takes note of the model as it is now.

        Args:
            model: a module or a state dict; always of the same names and shapes.
            step: of training; by default 1, 2, 3 and so on.
            val_loss: the validation loss of this model, where it was evaluated (only SWAD looks at it).

        Raises:
            InputError: the model does not fit the first one, or `val_loss` is not finite.
        """
        if val_loss is not None:
            trajectory.check_loss(val_loss, f"update {self.updates + 1}")
        member = open_member(model, self.updates)
        if self._template is None:
            self._template = Template(member, self._policy, self._device)
        self._template.check(member)
        self.updates += 1
        self._update(member, self.updates if step is None else step, val_loss)

    @torch.no_grad()
    def average(self) -> dict[str, Tensor]:
        """The average so far: new tensors by name, of the model's element types, on the average's device.

        Raises:
            InputError: nothing has entered the average yet.
        """
        rows = self._rows()
        if self._template is None or not rows:
            raise InputError(f"nothing has entered the average after {self.updates} updates")
        return self._template.average(rows)

    @property
    def span(self) -> tuple[int, int, int]:
        """First and last step in the average, and how many models are in it; (0, 0, 0) while there is none."""
        rows = self._rows()
        return (rows[0].first, rows[-1].last, sum(row.count for row in rows)) if rows else (0, 0, 0)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All that later updates depend on: JSON-able values, and tensors by name, which share this one's memory."""
        rows = {name: row.state() for name, row in self._named_rows().items()}
        values = {"updates": self.updates, "rows": {name: state[0] for name, state in rows.items()}}
        tensors = {f"{name}:{key}": value for name, state in rows.items() for key, value in state[1].items()}
        return values | self._numbers(), tensors

    def restore(
        self,
        model: nn.Module | Mapping[str, Tensor],
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Goes on from a `state` of an average with the same settings.

        Args:
            model: of the names, shapes and types of those that were averaged.
            values: the state's first part.
            tensors: the state's second part, on any device.
        """
        self.updates = int(values["updates"])
        self._template = Template(open_member(model, 0), self._policy, self._device)
        states: dict[str, RowState] = {name: (counts, {}) for name, counts in values["rows"].items()}
        for name, tensor in tensors.items():
            row, key = name.split(":", 1)
            states[row][1][key] = tensor
        rows = {name: Row.restored(self._template, state) for name, state in states.items()}
        self._set_rows(rows, values)

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        raise NotImplementedError

    def _named_rows(self) -> dict[str, Row]:
        """All rows that are kept, under names without a colon."""
        return _numbered(self._rows())

    def _numbers(self) -> dict[str, Any]:
        """What beside the rows is to be kept."""
        return {}

    def _set_rows(self, rows: dict[str, Row], values: Mapping[str, Any]) -> None:
        """Takes what `_named_rows` and `_numbers` gave."""
        raise NotImplementedError

    def _rows(self) -> list[Row]:
        """The rows whose mean, weighted by their counts, is the average."""
        raise NotImplementedError

    def _new_row(self) -> Row:
        assert self._template is not None
        return Row(self._template)


class EMA(AlongRun):
    """The exponential moving average: `a = d * a + (1 - d) * x`, from the first model on.

    Args:
        decay: d, from 0 to 1.
        warmup: begin with smaller decays, by `ratfast.averaging.trajectory.ema_decay`.
        buffers: as in `AlongRun`.
        device: as in `AlongRun`.

    Raises:
        InputError: `decay` is out of range.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        buffers: str = "latest",
        device: torch.device | str | None = None,
    ):
        super().__init__(buffers=buffers, device=device)
        self.decay = trajectory.check_decay(decay)
        self.warmup = warmup
        self._row: Row | None = None

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if self._row is None:
            self._row = self._new_row()
        decay = trajectory.ema_decay(self._row.count, self.decay, warmup=self.warmup)
        self._row.add(member, step, 1.0 - decay)

    def _rows(self) -> list[Row]:
        return [] if self._row is None else [self._row]

    def _set_rows(self, rows: dict[str, Row], values: Mapping[str, Any]) -> None:
        self._row = rows.get("0")


class SWA(AlongRun):
    """Stochastic weight averaging (arXiv 1803.05407): the mean of every c-th model from a step on.

    `a = a + (x - a) / (n + 1)` at the steps that `ratfast.averaging.trajectory.swa_weights` counts.

    Args:
        start: the first step that counts.
        every: c, in steps.
        buffers: as in `AlongRun`.
        device: as in `AlongRun`.

    Raises:
        InputError: `every` is not positive.
    """

    def __init__(
        self,
        start: int = 0,
        every: int = 1,
        *,
        buffers: str = "latest",
        device: torch.device | str | None = None,
    ):
        super().__init__(buffers=buffers, device=device)
        trajectory.check_positive("every", every)
        self.start, self.every = start, every
        self._row: Row | None = None

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if not trajectory.is_swa_step(step, self.start, self.every):
            return
        if self._row is None:
            self._row = self._new_row()
        self._row.add(member, step)

    def _rows(self) -> list[Row]:
        return [] if self._row is None else [self._row]

    def _set_rows(self, rows: dict[str, Row], values: Mapping[str, Any]) -> None:
        self._row = rows.get("0")


class MovingAverage(SWA):
    """The simple moving average of arXiv 2110.10832: the mean of all models from a step on.

    Args:
        start: the first step that counts.
        buffers: as in `AlongRun`.
        device: as in `AlongRun`.
    """

    def __init__(self, start: int = 0, *, buffers: str = "latest", device: torch.device | str | None = None):
        super().__init__(start, buffers=buffers, device=device)


class LAWA(AlongRun):
    """Latest weight averaging (arXiv 2209.14981): the mean of the latest k models. Keeps k rows.

    Args:
        k: how many models.
        every: take one model in so many updates, such as the updates of an epoch: the k-th, 2k-th, ... update.
        buffers: as in `AlongRun`.
        device: as in `AlongRun`.

    Raises:
        InputError: `k` or `every` is not positive.
    """

    def __init__(
        self, k: int, every: int = 1, *, buffers: str = "latest", device: torch.device | str | None = None
    ):
        super().__init__(buffers=buffers, device=device)
        trajectory.check_positive("k", k)
        trajectory.check_positive("every", every)
        self.every = every
        self._latest: deque[Row] = deque(maxlen=k)

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if self.updates % self.every:
            return
        # The oldest row's memory takes the newest model.
        full = len(self._latest) == self._latest.maxlen
        row = self._latest.popleft() if full else self._new_row()
        row.count = 0
        row.add(member, step)
        self._latest.append(row)

    def _rows(self) -> list[Row]:
        return list(self._latest)

    def _set_rows(self, rows: dict[str, Row], values: Mapping[str, Any]) -> None:
        self._latest = deque(rows.values(), self._latest.maxlen)


class SWAD(AlongRun):
    """Stochastic weight averaging densely (arXiv 2102.08604): the mean over the valley of the validation loss.

    `update` is called after every step of training, with `val_loss` wherever the model was evaluated. The models
    since the last evaluation are one segment, which has the loss at its end. Segments from t_s to t_e of
    `ratfast.averaging.trajectory.swad_range`, whose docstring has the rule, are in the average, which is the mean
    over all their models. Keeps at most `n_start` + 1 rows until the valley is found, then three.

    Args:
        n_start: N_s, evaluations that none of must be below the start.
        n_end: N_e, evaluations above the threshold that end the valley.
        tolerance: r, the threshold relative to the mean loss at the start.
        buffers: as in `AlongRun`.
        device: as in `AlongRun`.

    Attributes:
        threshold: l, once the valley is found; else None.
        ended: whether the valley has ended, so that later models no longer count and training may stop.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        n_start: int = trajectory.N_START,
        n_end: int = trajectory.N_END,
        tolerance: float = trajectory.TOLERANCE,
        *,
        buffers: str = "latest",
        device: torch.device | str | None = None,
    ):
        super().__init__(buffers=buffers, device=device)
        trajectory.check_swad(n_start, n_end, tolerance)
        self.n_start, self.n_end, self.tolerance = n_start, n_end, tolerance
        self.threshold: float | None = None
        self.ended = False
        self._segment: Row | None = None  # of the models since the last evaluation
        self._recent: list[tuple[Row, float]] = []  # the evaluated segments from the least loss on
        self._valley: Row | None = None  # the segments that are in the average whatever follows
        self._doubtful: Row | None = None  # the segments after them, all above the threshold
        self._above = 0  # how many they are

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if self.ended:
            return
        if self._segment is None:
            self._segment = self._new_row()
        self._segment.add(member, step)
        if val_loss is None:
            return
        segment, self._segment = self._segment, None
        if self.threshold is None:
            self._seek_start(segment, val_loss)
        else:
            self._extend(segment, val_loss)

    def _seek_start(self, segment: Row, loss: float) -> None:
        if self._recent and self._recent[0][1] > loss:
            self._recent.clear()  # none of these is the least of N_s losses any more
        self._recent.append((segment, loss))
        if len(self._recent) < self.n_start:
            return
        rows, losses = zip(*self._recent, strict=True)
        self._recent.clear()
        self.threshold = trajectory.swad_threshold(losses, self.tolerance)
        above = 0
        while losses[-1 - above] > self.threshold:  # the first never is
            above += 1
        # The search for the end begins after this evaluation, so that it cannot have come before.
        self._above = min(above, self.n_end - 1)
        self._valley = merged(rows[: len(rows) - self._above])
        self._doubtful = merged(rows[len(rows) - self._above :])

    def _extend(self, segment: Row, loss: float) -> None:
        assert self.threshold is not None and self._valley is not None
        doubtful = segment if self._doubtful is None else self._doubtful.merge(segment)
        self._above += 1
        if loss <= self.threshold:
            self._valley.merge(doubtful)
            self._doubtful, self._above = None, 0
        elif self._above == self.n_end:
            self._doubtful, self.ended = None, True
        else:
            self._doubtful = doubtful

    def _rows(self) -> list[Row]:
        if self._valley is not None:
            return [row for row in (self._valley, self._doubtful) if row is not None]
        return [self._recent[-1][0]] if self._recent else []

    def _named_rows(self) -> dict[str, Row]:
        single = {"segment": self._segment, "valley": self._valley, "doubtful": self._doubtful}
        kept = {name: row for name, row in single.items() if row is not None}
        return kept | _numbered(row for row, _ in self._recent)

    def _numbers(self) -> dict[str, Any]:
        losses = [loss for _, loss in self._recent]
        return {"threshold": self.threshold, "ended": self.ended, "above": self._above, "losses": losses}

    def _set_rows(self, rows: dict[str, Row], values: Mapping[str, Any]) -> None:
        self._segment, self._valley, self._doubtful = map(rows.get, ("segment", "valley", "doubtful"))
        losses = values["losses"]
        self._recent = [(rows[str(number)], loss) for number, loss in enumerate(losses)]
        self.threshold, self.ended, self._above = values["threshold"], values["ended"], values["above"]


def _numbered(rows: Iterable[Row]) -> dict[str, Row]:
    return {str(number): row for number, row in enumerate(rows)}
