"""ratfast: Model Ratatouille (arXiv 2212.10445) made fast.

| for | look at |
|---|---|
| averages of models | `average`, `merge`, `merge_files`, `Pool`, `greedy_soup`, `ratfast.averaging` |
| averages along a run | `ModelEma`, `ratfast.swa`, `ratfast.averaging` |
| optimizers whose step is one pass | `ratfast.optim`, `Arena` |
| checkpoint files of any kind | `ratfast.checkpoints` |
| DomainBed's splits, draws and seeds | `ratfast.protocol` |
| images of domains | `ratfast.data` |
| networks | `ratfast.models` |
| whole trainings | `ratfast.train`, recipes in `ratfast.config.schema` |
| what sets of networks look like | `ratfast.analysis` |
| the operators themselves | `ratfast.ops` |

Public names are loaded on first use, so that `import ratfast` and the command line's `--help` do not pay
for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy
from ratfast.errors import InputError
from ratfast.version import __version__

if TYPE_CHECKING:
    from ratfast import analysis, averaging, checkpoints, data, models, ops, optim, protocol, swa, train
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
    "analysis",
    "average",
    "averaging",
    "checkpoints",
    "data",
    "greedy_soup",
    "merge",
    "merge_files",
    "models",
    "ops",
    "optim",
    "protocol",
    "swa",
    "train",
]

_HOMES = {
    "Arena": "arena",
    "ModelEma": "ema",
    "Pool": "averaging.pool",
    "analysis": None,
    "average": "averaging",
    "averaging": None,
    "checkpoints": None,
    "data": None,
    "greedy_soup": "averaging.soup",
    "merge": "averaging",
    "merge_files": "averaging",
    "models": None,
    "ops": None,
    "optim": None,
    "protocol": None,
    "swa": None,
    "train": None,
}

__getattr__ = lazy.attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
