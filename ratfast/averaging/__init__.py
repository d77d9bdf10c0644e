"""Averaging of models: weighted sums of any number of them in one pass over their memory.

`average` takes modules, state dicts and files; `Pool` keeps models as rows for many averages; `greedy_soup`
selects; `average_files` turns files into a file without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy

if TYPE_CHECKING:
    from ratfast.averaging.files import average_files
    from ratfast.averaging.pool import Pool
    from ratfast.averaging.soup import GreedySoup, greedy_soup
    from ratfast.averaging.tensors import average

__all__ = ["GreedySoup", "Pool", "average", "average_files", "greedy_soup"]

_HOMES = {
    "GreedySoup": "soup",
    "Pool": "pool",
    "average": "tensors",
    "average_files": "files",
    "greedy_soup": "soup",
}

__getattr__ = lazy.attributes(__name__, _HOMES)
