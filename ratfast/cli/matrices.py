"""Numbers and matrices as lines on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MOST_COLUMNS = 12
"""Of a matrix on a screen; of a larger one its range is shown."""


def listing(names: Sequence[str]) -> Iterator[str]:
    """The numbers that `header` and `matrix` use for names."""
    for index, name in enumerate(names):
        yield f"{index + 1:>3}  {name}"


def header(count: int) -> str:
    """The numbers above the columns."""
    return "model  " + row([str(index + 1) for index in range(min(count, MOST_COLUMNS))])


def matrix(title: str, values: np.ndarray) -> Iterator[str]:
    """A matrix (K, N), or the range of what is above the diagonal where it is too wide."""
    yield title
    if values.shape[1] > MOST_COLUMNS:
        pairs = values[0] if len(values) == 1 else values[np.triu_indices(len(values), 1)]
        yield f"       from {pairs.min():.4g} to {pairs.max():.4g}, mean {pairs.mean():.4g} (all with --json)"
        return
    for index, line in enumerate(values):
        label = "" if len(values) == 1 else str(index + 1)
        yield f"{label:>5}  " + row([f"{value:.4g}" for value in line])


def row(cells: Sequence[str]) -> str:
    """Cells in columns of one width."""
    return " ".join(f"{cell:>9}" for cell in cells)
