"""Weighted sums of integers in files, such as counters of batches."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ratfast.dtypes import BY_NAME

_FEW = 64  # elements up to which numpy is not worth its import
_CODES = {("int", 8): "q", ("int", 4): "i", ("int", 2): "h", ("int", 1): "b"}
_CODES |= {("uint", size): code.upper() for (_, size), code in list(_CODES.items())}


def average_integers(pieces: Sequence[tuple[memoryview, str]], weights: Sequence[float], dtype: str) -> bytes:
    """The weighted sum in float64, rounded to the nearest integer, of two as near to the even one.

    Args:
        pieces: of every model the bytes of the same elements, and their integer type; those of weight 0 are not read.
        weights: a number for each.
        dtype: of the result.
    """
    counted = [(*piece, weight) for piece, weight in zip(pieces, weights, strict=True) if weight != 0.0]
    count = pieces[0][0].nbytes // BY_NAME[pieces[0][1]].itemsize
    if count <= _FEW:
        totals = [0.0] * count
        for data, kind, weight in counted:
            values = data.cast(_code(kind))
            totals = [total + weight * float(value) for total, value in zip(totals, values, strict=True)]
        try:
            return struct.pack(f"={count}{_code(dtype)}", *map(round, totals))
        except struct.error:  # a sum beyond the type, which numpy wraps around or cuts off
            pass
    import numpy as np

    from ratfast.checkpoints.elements import decoded

    sums = np.zeros(count)
    for data, kind, weight in counted:
        sums += weight * decoded(data, kind).astype(np.float64)
    return np.rint(sums).astype(dtype).tobytes()


def _code(dtype: str) -> str:
    return _CODES[dtype.rstrip("0123456789"), BY_NAME[dtype].itemsize]
