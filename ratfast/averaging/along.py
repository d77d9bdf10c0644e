"""Averages of a model along its training run, kept while it trains.

Each has `update(model, step=..., val_loss=...)` and `average()`. What is kept is one row for the whole model (SWAD
and LAWA need a few), written in one pass over the model for each update. The same rules over files of checkpoints
are in `ratfast.averaging.trajectory`, where the formulas stand.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ratfast import ops
from ratfast.averaging import trajectory
from ratfast.averaging.members import Member, buffer_names, in_order, open_member, strides_of
from ratfast.averaging.rules import layout_mismatch
from ratfast.checkpoints.tensors import dtype_name, layout_of
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Layout, TensorSpec

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
        self._template: _Template | None = None

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
            self._template = _Template(member, self._policy, self._device)
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

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        raise NotImplementedError

    def _rows(self) -> list[_Row]:
        """The rows whose mean, weighted by their counts, is the average."""
        raise NotImplementedError

    def _new_row(self) -> _Row:
        assert self._template is not None
        return _Row(self._template)


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
        self._row: _Row | None = None

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if self._row is None:
            self._row = self._new_row()
        decay = trajectory.ema_decay(self._row.count, self.decay, warmup=self.warmup)
        self._row.add(member, step, 1.0 - decay)

    def _rows(self) -> list[_Row]:
        return [] if self._row is None else [self._row]


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
        self._row: _Row | None = None

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if not trajectory.is_swa_step(step, self.start, self.every):
            return
        if self._row is None:
            self._row = self._new_row()
        self._row.add(member, step)

    def _rows(self) -> list[_Row]:
        return [] if self._row is None else [self._row]


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
        self._latest: deque[_Row] = deque(maxlen=k)

    def _update(self, member: Member, step: int, val_loss: float | None) -> None:
        if self.updates % self.every:
            return
        # The oldest row's memory takes the newest model.
        full = len(self._latest) == self._latest.maxlen
        row = self._latest.popleft() if full else self._new_row()
        row.count = 0
        row.add(member, step)
        self._latest.append(row)

    def _rows(self) -> list[_Row]:
        return list(self._latest)


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
        self._segment: _Row | None = None  # of the models since the last evaluation
        self._recent: list[tuple[_Row, float]] = []  # the evaluated segments from the least loss on
        self._valley: _Row | None = None  # the segments that are in the average whatever follows
        self._doubtful: _Row | None = None  # the segments after them, all above the threshold
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

    def _seek_start(self, segment: _Row, loss: float) -> None:
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
        self._valley = _merged(rows[: len(rows) - self._above])
        self._doubtful = _merged(rows[len(rows) - self._above :])

    def _extend(self, segment: _Row, loss: float) -> None:
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

    def _rows(self) -> list[_Row]:
        if self._valley is not None:
            return [row for row in (self._valley, self._doubtful) if row is not None]
        return [self._recent[-1][0]] if self._recent else []


class _Template:
    """What all rows of one model share: which tensors are averaged, and their places."""

    def __init__(self, first: Member, policy: str, device: torch.device | None):
        self.names = list(first.tensors)
        self.dtypes = {name: tensor.dtype for name, tensor in first.tensors.items()}
        self.label = first.label
        self._all = layout_of(first.tensors)
        self._shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
        buffers = buffer_names([first])
        summed = [
            name
            for name, tensor in first.tensors.items()
            if tensor.is_floating_point() and (policy == "average" or name not in buffers)
        ]
        self.kept = [name for name in self.names if name not in set(summed)]
        place = next((tensor.device for tensor in first.tensors.values()), torch.device("cpu"))
        self.device = device or place
        self.layout = Layout.pack(
            TensorSpec(
                name,
                tuple(first.tensors[name].shape),
                _held_in(dtype_name(name, first.tensors[name])),
                tuple(strides_of(first.tensors[name])),
            )
            for name in summed
        )

    def check(self, member: Member) -> None:
        """Raises InputError if a model differs from the first in names or shapes."""
        shapes = {name: tensor.shape for name, tensor in member.tensors.items()}
        if shapes != self._shapes:
            raise layout_mismatch(member.label, self.label, self._all.differences(layout_of(member.tensors)))

    def values(self, member: Member) -> list[Tensor]:
        """The tensors to be averaged, in the order of the layout and in its memory orders."""
        return [in_order(member.tensors[entry.name], entry.strides, self.device) for entry in self.layout]

    def average(self, rows: list[_Row]) -> dict[str, Tensor]:
        """The mean of rows weighted by their counts, in the model's types."""
        total = sum(row.count for row in rows)
        outputs = [
            torch.empty_strided(entry.shape, entry.strides, dtype=self.dtypes[entry.name], device=self.device)
            for entry in self.layout
        ]
        ops.mix_([outputs], [row.tensors for row in rows], [[row.count / total for row in rows]])
        values = dict(zip((entry.name for entry in self.layout), outputs, strict=True))
        values.update((name, tensor.clone()) for name, tensor in rows[-1].kept.items())
        return {name: values[name] for name in self.names}


class _Row:
    """A mean of models in one allocation.

    Attributes:
        tensors: views of it, in the order of the template's layout.
        kept: copies of the tensors that are not averaged, of the latest model.
        count: how many models are in it.
        first: step of the earliest.
        last: step of the latest.
    """

    def __init__(self, template: _Template):
        self._template = template
        row = torch.empty(template.layout.nbytes, dtype=torch.uint8, device=template.device)
        self.tensors = [
            row[entry.offset : entry.offset + entry.nbytes]
            .view(getattr(torch, entry.dtype))
            .as_strided(entry.shape, entry.strides)
            for entry in template.layout
        ]
        self.kept: dict[str, Tensor] = {}
        self.count = self.first = self.last = 0

    def add(self, member: Member, step: int, rate: float | None = None) -> None:
        """Moves the mean towards a model by `rate`; by default to the mean of all."""
        values = self._template.values(member)
        if self.count == 0:
            self.first = step
            ops.mix_([self.tensors], [values], [[1.0]])
        else:
            rate = 1.0 / (self.count + 1) if rate is None else rate
            ops.mix_([self.tensors], [self.tensors, values], [[1.0 - rate, rate]])
        self.kept = {
            name: member.tensors[name].to(self._template.device, copy=True) for name in self._template.kept
        }
        self.count += 1
        self.last = step

    def merge(self, later: _Row) -> _Row:
        """Becomes the mean of the models of both, and returns itself."""
        share = later.count / (self.count + later.count)
        ops.mix_([self.tensors], [self.tensors, later.tensors], [[1.0 - share, share]])
        self.kept, self.count, self.last = later.kept, self.count + later.count, later.last
        return self


def _merged(rows: Sequence[_Row]) -> _Row | None:
    return functools.reduce(_Row.merge, rows) if rows else None


def _held_in(dtype: str) -> str:
    return dtype if BY_NAME[dtype].itemsize >= 4 else "float32"
