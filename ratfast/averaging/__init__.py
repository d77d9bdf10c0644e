"""Averaging of models: weighted sums of any number of them in one pass over their memory.

`average` takes modules, state dicts and files; `Pool` keeps models as rows for many averages; `merge` combines by
the methods in `ratfast.averaging.methods`; `greedy_soup` selects; `average_files` and `merge_files` turn files into a
file without torch, and `again` makes such a file once more; `EMA`, `SWA`, `MovingAverage`, `LAWA` and `SWAD` follow a
model along its training; `recompute_batch_norm` fits the batch-norm statistics of an average to data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy

if TYPE_CHECKING:
    from ratfast.averaging.along import EMA, LAWA, SWA, SWAD, MovingAverage
    from ratfast.averaging.batch_norm import recompute_batch_norm
    from ratfast.averaging.files import again, average_files, merge_files
    from ratfast.averaging.merging import merge
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
    "again",
    "average",
    "average_files",
    "dagger",
    "greedy_soup",
    "merge",
    "merge_files",
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
    "again": "files",
    "average": "tensors",
    "average_files": "files",
    "dagger": "soup",
    "greedy_soup": "soup",
    "merge": "merging",
    "merge_files": "files",
    "recompute_batch_norm": "batch_norm",
}

__getattr__ = lazy.attributes(__name__, _HOMES)
