"""Elements of one floating type as another, without torch: numpy has no bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ratfast.dtypes import BY_NAME

_PIECE = 1 << 22  # elements converted at a time


def decoded(data: memoryview, dtype: str) -> np.ndarray:
    """The numbers in a tensor's bytes, exactly: in the type they are stored in, bfloat16 in float32.

    Args:
        data: at any address.
        dtype: a name of `ratfast.dtypes.BY_NAME`.
    """
    aligned = np.frombuffer(bytes(data), np.uint8)
    if dtype == "bfloat16":  # the upper half of a float32
        return (aligned.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return aligned.view(dtype)


def converted(data: memoryview, source: str, target: str) -> Iterator[np.ndarray]:
    """The bytes of a tensor in another floating type, in pieces, rounded to nearest even.

    float64 goes to half and bfloat16 by way of float32, as in torch.

    Args:
        data: at any address.
        source: a floating type of `ratfast.dtypes.BY_NAME`.
        target: another.

    Yields:
        (bytes,) uint8.
    """
    step = _PIECE * BY_NAME[source].itemsize
    for start in range(0, data.nbytes, step):
        values = decoded(data[start : start + step], source)
        with np.errstate(over="ignore"):  # too large for the type is infinite in it
            yield _encoded(values, target).view(np.uint8)


def _encoded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float64":
        return values.astype(np.float64)
    single = values.astype(np.float32)
    if dtype != "bfloat16":
        return single.astype(dtype)
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(single), 0x7FC0 | (bits >> 16), rounded).astype(np.uint16)
