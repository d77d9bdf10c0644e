"""Whether the batch-norm statistics of models to be averaged differ, and by how much. No torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ratfast.checkpoints.names import is_statistic_name

if TYPE_CHECKING:
    import numpy as np

Statistics: TypeAlias = "Mapping[str, np.ndarray]"
"""Arrays of float64 by name; entries that are no batch-norm mean or variance are not looked at."""


@dataclass(frozen=True)
class Difference:
    """How far the batch-norm statistics of models are apart.

    Attributes:
        name: the buffer in which they differ most, such as "layer1.0.bn1.running_var".
        model: the index of the model in which that buffer is farthest from the first model's.
        distance: `max |x - y| / max |x|` over that buffer of the first model (x) and the other one (y).
        count: in how many buffers any model differs from the first.
    """

    name: str
    model: int
    distance: float
    count: int


def statistics_difference(models: Sequence[Statistics]) -> Difference | None:
    """Compares batch-norm statistics (`running_mean`, `running_var`) with the first model's.

    The counters `num_batches_tracked` play no part in evaluation and are left out.

    Args:
        models: of one architecture.

    Returns:
        The worst difference, or None where all are equal. NaN equals NaN; what is not finite in one model only is
        infinitely far from the other's.
    """
    found = [
        (_distance(models[0][name], model[name]), name, index)
        for name in filter(is_statistic_name, models[0])
        for index, model in enumerate(models[1:], 1)
    ]
    differing = [entry for entry in found if entry[0] > 0]
    if not differing:
        return None
    distance, name, index = max(differing, key=lambda entry: entry[0])
    return Difference(name, index, distance, len({name for _, name, _ in differing}))


def warn_if_statistics_differ(models: Sequence[Statistics], labels: Sequence[str]) -> None:
    """Gives one warning where the statistics of models differ and an average is to keep the first's.

    Args:
        models: of one architecture.
        labels: what each is called.
    """
    worst = statistics_difference(models)
    if worst is None:
        return
    others = f" and {worst.count - 1} more" if worst.count > 1 else ""
    by = f"by up to {worst.distance:.2g} of its largest value" if math.isfinite(worst.distance) else "most"
    warnings.warn(
        f"the average keeps the batch-norm statistics of {labels[0]}, but those of the models differ: "
        f"{worst.name!r}{others}, {by} in {labels[worst.model]}; "
        "ratfast.averaging.recompute_batch_norm(model, loader) computes those of the average",
        stacklevel=3,
    )


def _distance(first: np.ndarray, other: np.ndarray) -> float:
    import numpy as np

    equal = (first == other) | (np.isnan(first) & np.isnan(other))
    if equal.all():
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        apart = float(np.abs(first - other)[~equal].max())
    scale = float(np.abs(first[np.isfinite(first)]).max(initial=0.0))
    return apart / scale if math.isfinite(apart) and scale > 0.0 else math.inf
