"""Averages along one training run as weights over its checkpoints in the order of training. No torch.

The formulas stand here; `ratfast.averaging.along` follows the same rules while a run is training. Every function
gives one weight for each checkpoint, ready for `ratfast.average`; checkpoints of weight 0 are not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ratfast.errors import InputError

# SWAD's settings in the paper.
N_START = 3
N_END = 6
TOLERANCE = 1.3


def ema_decay(
    update: int,
    decay: float,
    *,
    warmup: bool = False,
    gamma: float = 1.0,
    power: float = 2 / 3,
    minimum: float = 0.0,
) -> float:
    """The decay of an exponential moving average at its n-th update after the first model.

    `decay`, or with warm-up `min(decay, 1 - (1 + n / gamma) ** -power)` but no less than `minimum`: an average that
    has seen little forgets its beginning sooner. With gamma = power = 1 it starts as the plain mean.

    Args:
        update: n, counted from 1; at 0 the average is the model.
        decay: from 0 to 1.
        warmup: whether to begin with smaller decays.
        gamma: greater for a slower warm-up.
        power: smaller for a slower warm-up.
        minimum: of the decay during warm-up.
    """
    if update <= 0:
        return 0.0
    if not warmup:
        return decay
    return max(min(1.0 - (1.0 + update / gamma) ** -power, decay), minimum)


def check_decay(decay: float) -> float:
    """Raises InputError unless `decay` is from 0 to 1."""
    if not 0.0 <= decay <= 1.0:
        raise InputError(f"decay is {decay}, expected a number from 0 to 1")
    return float(decay)


def ema_weights(count: int, decay: float, *, warmup: bool = False) -> list[float]:
    """The exponential moving average (Polyak): `a_1 = x_1`, `a_n = d_n a_{n-1} + (1 - d_n) x_n`.

    So `w_n = (1 - d_n) * d_{n+1} * ... * d_N`, with d from `ema_decay`; they sum to 1.

    Args:
        count: how many checkpoints.
        decay: d, from 0 to 1.
        warmup: whether d grows up to `decay`.

    Raises:
        InputError: there are no checkpoints, or `decay` is out of range.
    """
    check_decay(decay)
    _check_count(count)
    weights = []
    remaining = 1.0
    for update in range(count - 1, -1, -1):
        d = ema_decay(update, decay, warmup=warmup)
        weights.append((1.0 - d) * remaining)
        remaining *= d
    return weights[::-1]


def swa_weights(steps: Sequence[int], start: int = 0, every: int = 1) -> list[float]:
    """Stochastic weight averaging (Izmailov et al., arXiv 1803.05407): the mean of every c-th model from `start`.

    `w_n = 1 / K` for the K checkpoints with `step_n >= start` and `(step_n - start) mod c = 0`, else 0.

    Args:
        steps: the step of each checkpoint.
        start: the first step that counts.
        every: c, the length of a cycle in steps.

    Raises:
        InputError: no checkpoint counts, or `every` is not positive.
    """
    check_positive("every", every)
    _check_count(len(steps))
    chosen = [is_swa_step(step, start, every) for step in steps]
    if not any(chosen):
        raise InputError(
            f"no checkpoint is of step {start} or {every} steps later and so on, expected at least one"
        )
    return _uniform(chosen)


def is_swa_step(step: int, start: int, every: int) -> bool:
    """Whether the model of this step is one of those that stochastic weight averaging takes."""
    return step >= start and (step - start) % every == 0


def moving_average_weights(steps: Sequence[int], start: int) -> list[float]:
    """The simple moving average from a step on (Arpit et al., "Ensemble of Averages", arXiv 2110.10832).

    `w_n = 1 / K` for the K checkpoints with `step_n >= start`, else 0: stochastic weight averaging with c = 1.
    """
    return swa_weights(steps, start)


def lawa_weights(count: int, k: int) -> list[float]:
    """Latest weight averaging (Kaddour, arXiv 2209.14981): the mean of the latest k checkpoints.

    `w_n = 1 / min(k, N)` for `n > N - k`, else 0. While there are fewer than k, all count.

    Raises:
        InputError: there are no checkpoints, or `k` is not positive.
    """
    check_positive("k", k)
    _check_count(count)
    return _uniform([index >= count - k for index in range(count)])


def swad_weights(
    losses: Sequence[float], *, n_start: int = N_START, n_end: int = N_END, tolerance: float = TOLERANCE
) -> list[float]:
    """Stochastic weight averaging densely over the checkpoints of each evaluation: the mean over `swad_range`.

    Raises:
        InputError: as `swad_range`.
    """
    first, last = swad_range(losses, n_start=n_start, n_end=n_end, tolerance=tolerance)
    return _uniform([first <= index <= last for index in range(len(losses))])


def swad_range(
    losses: Sequence[float], *, n_start: int = N_START, n_end: int = N_END, tolerance: float = TOLERANCE
) -> tuple[int, int]:
    """Where the valley of the validation loss begins and ends (Cha et al., "SWAD", arXiv 2102.08604, Algorithm 1).

    With `E_1 ... E_T` the validation losses, at i = 1, 2, ...:

    - until a start is found: if `E_{i-N_s+1}` is the least of the last N_s losses, the start is
      `t_s = i - N_s + 1` and the threshold `l = r * mean(E_{t_s}, ..., E_i)`;
    - from then on: if all of the last N_e losses exceed l, the end is `t_e = i - N_e` and the search is over.

    If no end is found, `t_e = T`. The average is that of all models from t_s to t_e, each once.

    The authors' published code (khanrc/swad, `LossValley`) departs from this where N_e > N_s, which is its default: at
    the start it also takes models to the left of t_s, drops the left-most of these, and counts the model of t_s twice
    (its issue 28), or near the beginning of a run one after it. Besides, at the end of a run it drops trailing models
    above l. Here, as in the paper, t_s is the first model and every model counts once.

    Args:
        losses: E, one for each evaluation, in the order of training.
        n_start: N_s, the patience for the start.
        n_end: N_e, the patience for the end.
        tolerance: r, at least 1.

    Returns:
        `(t_s, t_e)` as indices from 0, both inclusive. If there is no start (a loss that falls to the end), the last
        evaluation alone, as in the published code.

    Raises:
        InputError: there is no loss, one is not finite, or a setting is out of range.
    """
    check_swad(n_start, n_end, tolerance)
    _check_count(len(losses))
    for index, loss in enumerate(losses):
        check_loss(loss, f"evaluation {index + 1}")
    first, threshold = None, math.inf
    for i in range(len(losses)):
        if first is None:
            window = losses[max(0, i - n_start + 1) : i + 1]
            if len(window) == n_start and window[0] == min(window):
                first, threshold = i - n_start + 1, swad_threshold(window, tolerance)
        elif min(losses[max(0, i - n_end + 1) : i + 1]) > threshold:
            return first, i - n_end
    return (len(losses) - 1 if first is None else first), len(losses) - 1


def swad_threshold(losses: Sequence[float], tolerance: float) -> float:
    """The loss l that ends SWAD's valley, from the N_s losses at its start."""
    return tolerance * (math.fsum(losses) / len(losses))


def check_swad(n_start: int, n_end: int, tolerance: float) -> None:
    """Raises InputError unless these are settings of SWAD."""
    check_positive("n_start", n_start)
    check_positive("n_end", n_end)
    if not 1.0 <= tolerance < math.inf:
        raise InputError(f"tolerance is {tolerance}, expected a number of at least 1")


def check_loss(loss: float, where: str) -> float:
    """Raises InputError unless a validation loss is a finite number, naming `where` it came from."""
    if not math.isfinite(loss):
        raise InputError(f"the validation loss of {where} is {loss}, expected a finite number")
    return float(loss)


def check_positive(name: str, value: int) -> None:
    """Raises InputError unless a setting is at least 1."""
    if value < 1:
        raise InputError(f"{name} is {value}, expected at least 1")


def _check_count(count: int) -> None:
    if count < 1:
        raise InputError("there are no checkpoints to average")


def _uniform(chosen: Sequence[bool]) -> list[float]:
    share = 1.0 / sum(chosen)
    return [share if one else 0.0 for one in chosen]
