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
    import numpy as np

    names = [name for name in models[0] if is_statistic_name(name) and models[0][name].size]
    if not names or len(models) < 2:
        return None
    # All buffers of a model as one vector, because there are a hundred short ones.
    first, *others = (np.concatenate([model[name].ravel() for name in names]) for model in models)
    starts = np.cumsum([0, *(models[0][name].size for name in names[:-1])])
    scales = np.maximum.reduceat(np.where(np.isfinite(first), np.abs(first), 0.0), starts)
    distances = np.stack([_distances(first, other, starts, scales) for other in others])
    if not distances.any():
        return None
    column, row = divmod(int(np.argmax(distances.T)), len(others))
    count = int(distances.any(axis=0).sum())
    return Difference(names[column], row + 1, float(distances[row, column]), count)


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


def _distances(first: np.ndarray, other: np.ndarray, starts: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """For each buffer, which begin at `starts`, how far it is from that of the first model."""
    import numpy as np

    equal = (first == other) | (np.isnan(first) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        apart = np.abs(first - other)
        apart[np.isnan(apart)] = np.inf
        apart[equal] = 0.0
        largest = np.maximum.reduceat(apart, starts)
        return np.where(largest > 0.0, largest / scales, 0.0)
