"""The numbers in a tensor's bytes, with numpy alone, which has no bfloat16."""

from __future__ import annotations

import numpy as np


def decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor's bytes, at any address, as float64.

    Args:
        data: (bytes,) uint8.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
    """
    data = np.frombuffer(data.tobytes(), np.uint8)  # aligned
    if dtype == "bfloat16":  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(dtype).astype(np.float64)
