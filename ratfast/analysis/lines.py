"""Straight lines through points: in-domain against out-of-domain accuracy, gain against diversity. Arrays only.

Miller et al., "Accuracy on the Line" (arXiv 2107.04649), fit such lines to in-domain and out-of-domain accuracy
(theirs through probits); Rame et al., "DiWA" (arXiv 2205.09739) and "Model Ratatouille" (arXiv 2212.10445), to the
gain of the average over its members against their diversity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratfast.errors import InputError


@dataclass(frozen=True)
class Line:
    """Least squares `y = intercept + slope x`.

    Attributes:
        slope: y gained for each x.
        intercept: y at x = 0.
        r: Pearson's correlation; None where all y are the same.
        points: their number.
    """

    slope: float
    intercept: float
    r: float | None
    points: int


def fit_line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Line | None:
    """The line through points, or None where fewer than three points or a single x leave it open.

    Raises:
        InputError: there are not as many x as y, or numbers are not finite.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"{x.size} x and {y.size} y are no points, expected as many finite numbers of each")
    if len(x) < 3 or np.ptp(x) <= 1e-12 * np.abs(x).max():
        return None
    across, up = x - x.mean(), y - y.mean()
    slope = float(across @ up / (across @ across))
    flat = np.ptp(y) <= 1e-12 * np.abs(y).max(initial=1.0)
    r = None if flat else float(np.clip(across @ up / np.sqrt((across @ across) * (up @ up)), -1.0, 1.0))
    return Line(slope, float(y.mean() - slope * x.mean()), r, len(x))
