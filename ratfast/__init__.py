"""ratfast: Model Ratatouille (arXiv 2212.10445) made fast.

Public names are loaded on first use, so that `import ratfast` and the command line's `--help` do not pay
for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy
from ratfast.errors import InputError
from ratfast.version import __version__

if TYPE_CHECKING:
    from ratfast import checkpoints, data, models, optim, protocol, swa, train
    from ratfast.arena import Arena
    from ratfast.averaging import average, merge, merge_files
    from ratfast.averaging.pool import Pool
    from ratfast.averaging.soup import greedy_soup
    from ratfast.ema import ModelEma

__all__ = [
    "Arena",
    "InputError",
    "ModelEma",
    "Pool",
    "__version__",
    "average",
    "checkpoints",
    "data",
    "greedy_soup",
    "merge",
    "merge_files",
    "models",
    "optim",
    "protocol",
    "swa",
    "train",
]

_HOMES = {
    "Arena": "arena",
    "ModelEma": "ema",
    "Pool": "averaging.pool",
    "average": "averaging",
    "checkpoints": None,
    "data": None,
    "greedy_soup": "averaging.soup",
    "merge": "averaging",
    "merge_files": "averaging",
    "models": None,
    "optim": None,
    "protocol": None,
    "swa": None,
    "train": None,
}

__getattr__ = lazy.attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
