"""The native module `_core` on numpy, in float64: lets the averaging of files be tested where nothing native is built.

It is written from the formulas, so it is also what the native module's results are compared with.
"""

import numpy as np

ROUND = (0xD2511F53, 0xCD9E8D57)
KEYS = (0x9E3779B9, 0xBB67AE85)


def read(buffer, dtype):
    data = np.frombuffer(bytes(buffer), np.uint8)
    if dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(dtype).astype(np.float64)


def write(buffer, values, dtype):
    """Stores float64 as torch converts it: to half precision by way of float32. Says whether all is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            bits = values.astype(np.float32).view(np.uint32)
            stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(
                np.uint16
            )  # to nearest, ties to even
            stored[np.isnan(values)] = 0x7FC0
        elif dtype == "float16":
            stored = values.astype(np.float32).astype(np.float16)
        else:
            stored = values.astype(dtype)
    np.frombuffer(buffer, np.uint8)[:] = stored.reshape(-1).view(np.uint8)
    return bool(np.isfinite(read(stored.reshape(-1).view(np.uint8), dtype)).all())


def mix(outputs, sources, dtypes_out, dtypes_in, weights, threads):
    assert len(outputs) == len(weights)
    assert all(len(sources) == len(dtypes_in) == len(row) for row in weights)
    assert threads > 0
    finite = True
    for k, tensors in enumerate(outputs):
        for t, output in enumerate(tensors):
            total = 0.0
            for n, source in enumerate(sources):
                total = total + weights[k][n] * read(source[t], dtypes_in[n][t])
            finite &= write(output, total, dtypes_out[t])
    return finite


def gram(sources, dtypes, threads):
    assert threads > 0
    grams = []
    for t in range(len(sources[0])):
        rows = np.stack([read(model[t], dtypes[n][t]) for n, model in enumerate(sources)])
        grams.append(rows @ rows.T)
    return np.array(grams).reshape(-1, len(sources), len(sources))


def kth_magnitudes(sources, bases, dtypes, dtypes_base, counts, together, threads):
    assert threads > 0
    sizes = []
    for t, source in enumerate(sources):
        values = read(source, dtypes[t]) - (0.0 if bases is None else read(bases[t], dtypes_base[t]))
        sizes.append(np.sort(np.abs(values.astype(np.float32)))[::-1])
    if together:
        sizes = [np.sort(np.concatenate(sizes))[::-1]]

    def kth(magnitudes, count):
        if count == 0:
            return np.inf
        return 0.0 if count >= magnitudes.size else magnitudes[count - 1]

    return np.array(
        [kth(own, int(count)) for own, count in zip(sizes, np.atleast_1d(counts), strict=True)], np.float32
    )


def philox(seed, stream, key, index):
    """Philox4x32-10 (Salmon et al. 2011): the uniform number of each element `index`, (n,) int64."""
    word = index.astype(np.uint64) // 4
    counter = [
        word & 0xFFFFFFFF,
        word >> 32,
        np.full_like(word, key & 0xFFFFFFFF),
        np.full_like(word, key >> 32),
    ]
    low, high = seed % 2**32, stream
    for _ in range(10):
        first, second = counter[0] * np.uint64(ROUND[0]), counter[2] * np.uint64(ROUND[1])
        counter = [
            (second >> 32) ^ counter[1] ^ np.uint64(low),
            second & 0xFFFFFFFF,
            (first >> 32) ^ counter[3] ^ np.uint64(high),
            first & 0xFFFFFFFF,
        ]
        low, high = (low + KEYS[0]) % 2**32, (high + KEYS[1]) % 2**32
    return np.choose(index % 4, counter).astype(np.float64) * 2.0**-32


def combine(
    outputs,
    sources,
    bases,
    dtypes_out,
    dtypes_in,
    dtypes_base,
    kind,
    weights,
    thresholds,
    densities,
    keys,
    streams,
    first,
    seed,
    scale,
    normalize,
    threads,
):
    assert threads > 0
    finite = True
    for t, output in enumerate(outputs):
        x = [read(model[t], dtypes_in[n][t]) for n, model in enumerate(sources)]
        w = [float(weight) for weight in weights]
        with np.errstate(all="ignore"):
            if kind in ("min", "max"):
                result = x[0]
                for row in x[1:]:
                    result = (np.minimum if kind == "min" else np.maximum)(result, row)
            elif kind == "geometric":
                logs = sum(weight * np.log(np.abs(row)) for weight, row in zip(w, x, strict=True))
                sign = np.sign(sum(weight * row for weight, row in zip(w, x, strict=True)))
                result = np.where((np.stack(x) == 0).any(axis=0), 0.0, sign * np.exp(logs))
            elif kind == "fisher":
                x, f = x[: len(w)], x[len(w) :]
                top = sum(a * b * c for a, b, c in zip(w, f, x, strict=True))
                below = sum(a * b for a, b in zip(w, f, strict=True))
                plain = sum(a * c for a, c in zip(w, x, strict=True)) / sum(w)
                result = np.where(below == 0, plain, top / below)
            else:
                base = read(bases[t], dtypes_base[t])
                tau = [row - base for row in x]
                index = np.arange(base.size) + first[t]
                for n in range(len(tau)):
                    if thresholds is not None:
                        tau[n] = np.where(np.abs(tau[n].astype(np.float32)) < thresholds[t][n], 0.0, tau[n])
                    if densities is not None and densities[n] < 1:
                        u = philox(seed, n if streams is None else streams[n], keys[t], index)
                        tau[n] = np.where(u < densities[n], tau[n] / densities[n], 0.0)
                total = sum(weight * row for weight, row in zip(w, tau, strict=True))
                if kind == "elect":
                    sign = np.sign(total)
                    agree = [np.sign(row) == sign for row in tau]
                    total = sum(np.where(a, c * r, 0.0) for a, c, r in zip(agree, w, tau, strict=True))
                    if normalize:
                        total = total / sum(np.where(a, c, 0.0) for a, c in zip(agree, w, strict=True))
                    result = np.where(sign == 0, base, base + scale * total)
                else:
                    result = base + scale * total
        finite &= write(output, result, dtypes_out[t])
    return finite
