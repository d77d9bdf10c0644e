"""Averaging of models: weighted sums of any number of them in one pass over their memory.

`average` takes modules, state dicts and files; `Pool` keeps models as rows for many averages; `merge` combines by
the methods in `ratfast.averaging.methods`; `greedy_soup` selects; `average_files` and `merge_files` turn files into a
file without torch, and `again` makes such a file once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy

if TYPE_CHECKING:
    from ratfast.averaging.files import again, average_files, merge_files
    from ratfast.averaging.merging import merge
    from ratfast.averaging.pool import Pool
    from ratfast.averaging.soup import GreedySoup, greedy_soup
    from ratfast.averaging.tensors import average

__all__ = ["GreedySoup", "Pool", "again", "average", "average_files", "greedy_soup", "merge", "merge_files"]

_HOMES = {
    "GreedySoup": "soup",
    "Pool": "pool",
    "again": "files",
    "average": "tensors",
    "average_files": "files",
    "greedy_soup": "soup",
    "merge": "merging",
    "merge_files": "files",
}

__getattr__ = lazy.attributes(__name__, _HOMES)
