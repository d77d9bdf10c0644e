"""Which checkpoints of a list go into an average, as weights over the list. No torch.

By stored scores (`top_k_weights`), or all runs of all trials (`dagger_list`). The rules along one training run are
in `ratfast.averaging.trajectory`; the greedy choice, which evaluates models, in `ratfast.averaging.soup`.
`SELECTIONS` has the rules by name, for lists of files: `average_files(paths, output, method=name,
weights=selection_weights(name, paths, options))`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ratfast.averaging import trajectory
from ratfast.checkpoints import open_checkpoint
from ratfast.errors import InputError

T = TypeVar("T")
Paths = Sequence[str | os.PathLike[str]]

SCORES = ("val", "run.val", "metric")
"""Where a checkpoint's stored score is looked for: ratfast notes `val`, of a run's checkpoint within `run`; timm's
`.pth.tar` files have `metric`. A dot goes into a nested value."""


def rank(scores: Sequence[Any], count: int) -> list[int]:
    """Indices from the highest score to the lowest; equal scores keep their order, what is no number comes last.

    Raises:
        InputError: there is not one number for each of `count` models.
    """
    try:
        numbers = [float(score) for score in scores]
    except (TypeError, ValueError):
        raise InputError(f"the scores are {scores!r}, expected {count} numbers") from None
    if len(numbers) != count:
        raise InputError(f"{len(numbers)} scores were given for {count} models, expected one for each")
    return sorted(
        range(count),
        key=lambda index: -math.inf if math.isnan(numbers[index]) else numbers[index],
        reverse=True,
    )


def top_k_weights(scores: Sequence[float], k: int) -> list[float]:
    """The mean of the k models with the highest scores: `w_n = 1 / k` for those, else 0.

    Args:
        scores: one number for each model, larger is better; of equal ones the earlier model is taken.
        k: how many to take.

    Raises:
        InputError: `k` is not from 1 to the number of models, or one of the k best scores is not a number.
    """
    if not 1 <= k <= len(scores):
        raise InputError(f"the best {k} models were asked for, expected a number from 1 to {len(scores)}")
    chosen = rank(scores, len(scores))[:k]
    for index in chosen:
        if not math.isfinite(scores[index]):
            raise InputError(f"the score of model {index + 1} is {scores[index]}, expected a finite number")
    return [1.0 / k if index in set(chosen) else 0.0 for index in range(len(scores))]


def dagger_list(trials: Iterable[Iterable[T]]) -> list[T]:
    """The runs of all trials in one list, whose uniform average is "dagger" in arXiv 2212.10445.

    Raises:
        InputError: there are no runs, or one file stands twice, which would count it double.
    """
    runs = [run for trial in trials for run in trial]
    if not runs:
        raise InputError("there are no runs in any trial, so there is nothing to average")
    seen: set[str] = set()
    for run in runs:
        if isinstance(run, (str, os.PathLike)):
            place = os.path.realpath(run)
            if place in seen:
                raise InputError(f"{os.fspath(run)} stands twice among the trials, expected every run once")
            seen.add(place)
    return runs


def stored_scores(paths: Paths, key: str | None = None) -> list[float]:
    """The validation score that each checkpoint file says it has.

    Args:
        paths: the files.
        key: where in the file's metadata the number stands, such as "run.val"; by default the first of `SCORES`
            that is there.

    Raises:
        InputError: a file has no such number; names the file and what was looked for.
    """
    return [_stored_score(os.fspath(path), (key,) if key else SCORES) for path in paths]


def _stored_score(path: str, keys: Sequence[str]) -> float:
    metadata = open_checkpoint(path).metadata
    for key in keys:
        value: Any = metadata
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    wanted = " or ".join(map(repr, keys))
    raise InputError(
        f"{path} has no stored score (a finite number under {wanted} in its metadata); give scores"
    )


def _top_k(
    paths: Paths, *, k: int = 1, scores: Sequence[float] | None = None, score_key: str | None = None
) -> list[float]:
    given = stored_scores(paths, score_key) if scores is None else _one_for_each("scores", scores, paths)
    return top_k_weights(given, k)


def _ema(paths: Paths, *, decay: float = 0.999, warmup: bool = False) -> list[float]:
    return trajectory.ema_weights(len(paths), decay, warmup=warmup)


def _swa(paths: Paths, *, steps: Sequence[int] | None = None, start: int = 0, every: int = 1) -> list[float]:
    return trajectory.swa_weights(_steps(steps, paths), start, every)


def _moving_average(paths: Paths, *, steps: Sequence[int] | None = None, start: int = 0) -> list[float]:
    return trajectory.moving_average_weights(_steps(steps, paths), start)


def _lawa(paths: Paths, *, k: int = 1) -> list[float]:
    return trajectory.lawa_weights(len(paths), k)


def _swad(
    paths: Paths,
    *,
    losses: Sequence[float] | None = None,
    n_start: int = trajectory.N_START,
    n_end: int = trajectory.N_END,
    tolerance: float = trajectory.TOLERANCE,
) -> list[float]:
    given = stored_scores(paths, "val_loss") if losses is None else _one_for_each("losses", losses, paths)
    return trajectory.swad_weights(given, n_start=n_start, n_end=n_end, tolerance=tolerance)


def _dagger(paths: Paths) -> list[float]:
    return [1.0 / len(paths)] * len(dagger_list([paths]))


SELECTIONS: dict[str, Callable[..., list[float]]] = {
    "top-k": _top_k,
    "ema": _ema,
    "swa": _swa,
    "moving-average": _moving_average,
    "lawa": _lawa,
    "swad": _swad,
    "dagger": _dagger,
}
"""Rules for lists of files, in the order of training where they follow a run. Their keyword arguments are options:
`k`; `scores` or `score_key` (else the stored scores); `decay`, `warmup`; `steps` (else 1, 2, 3...), `start`, `every`;
`losses` (else `val_loss` of the files' metadata), `n_start`, `n_end`, `tolerance`."""


def selection_weights(name: str, paths: Paths, options: Mapping[str, Any]) -> list[float]:
    """The weights of checkpoint files by a rule of `SELECTIONS`; those it leaves out have weight 0.

    Raises:
        InputError: there is no such rule or option, or the files and the options do not fit the rule.
    """
    rule = SELECTIONS.get(name.replace("_", "-"))
    if rule is None:
        raise InputError(f"there is no selection {name!r}, expected one of {', '.join(SELECTIONS)}")
    known = tuple(rule.__kwdefaults__ or ())
    for option in options:
        if option not in known:
            expected = f"expected one of {', '.join(known)}" if known else "it has none"
            raise InputError(f"the selection {name} has no option {option!r}: {expected}")
    return rule(paths, **options)


def _steps(steps: Sequence[int] | None, paths: Paths) -> Sequence[int]:
    return range(1, len(paths) + 1) if steps is None else _one_for_each("steps", steps, paths)


def _one_for_each(name: str, values: Sequence[T], paths: Paths) -> Sequence[T]:
    if len(values) != len(paths):
        raise InputError(
            f"{len(values)} {name} were given for {len(paths)} checkpoints, expected one for each"
        )
    return values
