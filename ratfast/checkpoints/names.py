"""What the names of a bare state dict tell, where there is no module to ask."""

from __future__ import annotations

from ratfast.dtypes import BY_NAME

_STATISTICS = ("running_mean", "running_var")
_BATCH_NORM = (*_STATISTICS, "num_batches_tracked")


def is_buffer_name(name: str, dtype: str) -> bool:
    """Whether an entry of a state dict is taken for a buffer: integers and batch-norm statistics are.

    Args:
        name: such as `layer1.0.bn1.running_mean`.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
    """
    return not BY_NAME[dtype].is_floating or name.rpartition(".")[2] in _BATCH_NORM


def is_statistic_name(name: str) -> bool:
    """Whether an entry is a batch-norm mean or variance, which evaluation depends on."""
    return name.rpartition(".")[2] in _STATISTICS
