"""The native module's `mix` on numpy: lets the averaging of files be tested where nothing native is built."""

import numpy as np


def _read(buffer, dtype):
    data = np.frombuffer(buffer, np.uint8)
    assert data.ctypes.data % np.dtype("uint16" if dtype == "bfloat16" else dtype).itemsize == 0
    if dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(dtype).astype(np.float64)


def _write(buffer, values, dtype):
    target = np.frombuffer(buffer, np.uint8)
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        target.view(np.uint16)[:] = rounded
    else:
        target.view(dtype)[:] = values


def mix(outputs, sources, dtypes_out, dtypes_in, weights, threads):
    assert len(sources) == len(dtypes_in) == weights.shape[1] and len(outputs) == weights.shape[0]
    assert threads > 0
    for k, tensors in enumerate(outputs):
        for t, output in enumerate(tensors):
            rows = [_read(source[t], dtypes_in[n][t]) for n, source in enumerate(sources)]
            _write(
                output, sum(row * weight for row, weight in zip(rows, weights[k], strict=True)), dtypes_out[t]
            )
