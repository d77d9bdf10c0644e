"""Averaging of models: weighted sums of any number of them in one pass over their memory.

`average` takes modules, state dicts and files; `Pool` keeps models as rows for many averages; `greedy_soup`
selects; `average_files` turns files into a file without torch; `EMA`, `SWA`, `MovingAverage`, `LAWA` and `SWAD` follow
a model along its training; `recompute_batch_norm` fits the batch-norm statistics of an average to data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy

if TYPE_CHECKING:
    from ratfast.averaging.along import EMA, LAWA, SWA, SWAD, MovingAverage
    from ratfast.averaging.batch_norm import recompute_batch_norm
    from ratfast.averaging.files import average_files
    from ratfast.averaging.pool import Pool
    from ratfast.averaging.soup import GreedySoup, dagger, greedy_soup
    from ratfast.averaging.tensors import average

__all__ = [
    "EMA",
    "LAWA",
    "SWA",
    "SWAD",
    "GreedySoup",
    "MovingAverage",
    "Pool",
    "average",
    "average_files",
    "dagger",
    "greedy_soup",
    "recompute_batch_norm",
]

_HOMES = {
    "EMA": "along",
    "GreedySoup": "soup",
    "LAWA": "along",
    "MovingAverage": "along",
    "Pool": "pool",
    "SWA": "along",
    "SWAD": "along",
    "average": "tensors",
    "average_files": "files",
    "dagger": "soup",
    "greedy_soup": "soup",
    "recompute_batch_norm": "batch_norm",
}

__getattr__ = lazy.attributes(__name__, _HOMES)
