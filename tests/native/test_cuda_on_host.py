"""The CUDA kernels and launchers, compiled for the host: indexing and arithmetic, where there is no GPU."""

import ctypes
from itertools import chain

import numpy as np
import pytest
import torch

from ratfast import reference

CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
DTYPES = tuple(CODES)


def pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])


def codes(tensors):
    return (ctypes.c_ubyte * len(tensors))(*[CODES[x.dtype] for x in tensors])


def mix(kernels, outputs, sources, weights):
    """outputs[k][t], sources[n][t]; returns the number of kernels launched."""
    tensors = len(outputs[0])
    numels = (ctypes.c_longlong * tensors)(*[x.numel() for x in outputs[0]])
    by_tensor = [[model[t] for t in range(tensors) for model in models] for models in (outputs, sources)]
    weights = np.ascontiguousarray(weights, dtype=np.float64)
    before = kernels.launch_count()
    status = kernels.mix(
        tensors,
        numels,
        len(outputs),
        pointers(by_tensor[0]),
        codes(by_tensor[0]),
        len(sources),
        pointers(by_tensor[1]),
        codes(by_tensor[1]),
        weights.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
    )
    assert status == 0
    assert not kernels.saw_misaligned()
    return kernels.launch_count() - before


def check_mix(kernels, outputs, sources, weights):
    wanted = [[x.clone() for x in model] for model in outputs]
    reference.mix_(
        [x for model in wanted for x in model],
        [x for model in sources for x in model],
        torch.as_tensor(weights, dtype=torch.float64),
    )
    launches = mix(kernels, outputs, sources, weights)
    for got, want in zip(chain(*outputs), chain(*wanted), strict=True):
        unit = torch.finfo(want.dtype).eps
        torch.testing.assert_close(got, want, rtol=2 * unit, atol=1e-13 if unit < 1e-10 else 4e-6)
    return launches


@pytest.mark.parametrize("source", [*DTYPES, None])
@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.parametrize("num_outputs", [1, 3, 4, 7, 19])
def test_mix(kernels, source, output, num_outputs):
    sizes = (1, 7, 1024, 2048 * 3, 5000, 0, 2047)
    kinds = [source] if source is not None else list(DTYPES[1:])
    sources = [
        [torch.randn(size).to(kinds[(n + t) % len(kinds)]) for t, size in enumerate(sizes)] for n in range(5)
    ]
    outputs = [[torch.full((size,), torch.nan).to(output) for size in sizes] for _ in range(num_outputs)]
    check_mix(kernels, outputs, sources, np.random.default_rng(0).normal(size=(num_outputs, 5)))


@pytest.mark.parametrize("skip", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mix_of_unaligned_memory(kernels, skip, dtype):
    sources = [[torch.randn(5000 + skip).to(dtype)[skip:]] for _ in range(3)]
    output = torch.full((5000 + 16,), 7.0, dtype=dtype)
    check_mix(kernels, [[output[skip : skip + 5000]]], sources, np.ones((1, 3)) / 3)
    assert (output[:skip] == 7).all() and (output[skip + 5000 :] == 7).all()


def test_mix_of_more_than_one_table(kernels):
    sizes = [1 + (i * 37) % 3000 for i in range(300)]
    sources = [[torch.randn(size) for size in sizes] for _ in range(20)]
    outputs = [[torch.empty(size) for size in sizes] for _ in range(2)]
    assert check_mix(kernels, outputs, sources, np.random.default_rng(0).normal(size=(2, 20))) == 5


@pytest.mark.parametrize(("num_sources", "num_outputs", "passes"), [(1024, 3, 3), (200, 8, 2), (128, 8, 1)])
def test_mix_of_many_models(kernels, num_sources, num_outputs, passes):
    row = torch.randn(1100 * num_sources)
    sources = [[row[n * 1100 : n * 1100 + 1100]] for n in range(num_sources)]
    outputs = [[torch.empty(1100)] for _ in range(num_outputs)]
    weights = np.random.default_rng(0).normal(size=(num_outputs, num_sources)) / num_sources
    assert check_mix(kernels, outputs, sources, weights) == passes


@pytest.mark.parametrize("num_outputs", [1, 4, 8])
def test_mix_in_place(kernels, num_outputs):
    sources = [[torch.randn(3000), torch.randn(100)] for _ in range(9)]
    assert kernels.passes(num_outputs, 9) == num_outputs
    check_mix(kernels, sources[:num_outputs], sources, np.random.default_rng(0).normal(size=(num_outputs, 9)))


def gram(kernels, sources):
    """sources[n][t]"""
    tensors, models = len(sources[0]), len(sources)
    by_tensor = [model[t] for t in range(tensors) for model in sources]
    numels = (ctypes.c_longlong * tensors)(*[x.numel() for x in sources[0]])
    result = np.full((tensors, models, models), np.nan)
    status = kernels.gram(
        tensors,
        numels,
        models,
        pointers(by_tensor),
        codes(by_tensor),
        result.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
    )
    assert status == 0
    assert not kernels.saw_misaligned()
    return result


def check_gram(kernels, sources):
    got = gram(kernels, sources)
    for t, matrix in enumerate(got):
        rows = np.stack([model[t].double().numpy() for model in sources])
        scale = np.abs(rows) @ np.abs(rows).T
        np.testing.assert_array_less(np.abs(matrix - rows @ rows.T), 1e-12 * scale + 1e-300)
        np.testing.assert_array_equal(matrix, matrix.T)
    return got


@pytest.mark.parametrize("models", [1, 2, 4, 5, 9, 16, 20, 21, 33, 40])
def test_gram(kernels, models):
    sizes = (1, 0, 7, 1025, 4099)
    check_gram(
        kernels,
        [[torch.randn(n).to(DTYPES[(i + t) % 4]) for t, n in enumerate(sizes)] for i in range(models)],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_does_not_depend_on_alignment(kernels, dtype):
    rows = [[torch.randn(5000).to(dtype)] for _ in range(3)]
    skipped = []
    for (row,) in rows:
        skipped.append([torch.empty(5001, dtype=dtype)[1:].copy_(row)])
    np.testing.assert_array_equal(check_gram(kernels, rows), gram(kernels, skipped))


def test_gram_of_many_parts_and_tables(kernels):
    check_gram(kernels, [[torch.randn(8192 * 40 + 5)] for _ in range(3)])
    check_gram(kernels, [[torch.randn(1 + i % 7) for i in range(300)] for _ in range(8)])


def test_gram_of_what_is_not_finite(kernels):
    rows = torch.randn(3, 100)
    rows[1, 5] = torch.inf
    got = gram(kernels, [[row] for row in rows])[0]
    np.testing.assert_array_equal(np.isfinite(got), [[True, False, True], [False] * 3, [True, False, True]])


KINDS = ("min", "max", "geometric", "fisher", "sum", "elect")


def philox(seed: int, stream: int, index: np.ndarray, key: int) -> np.ndarray:
    """Draws in [0, 1) of Philox4x32-10: the published rounds, on columns of integers."""
    low = 0xFFFFFFFF
    c = [index // 4 & low, index // 4 >> 32, np.full_like(index, key & low), np.full_like(index, key >> 32)]
    c = [x.astype(np.uint64) for x in c]
    keys = [seed & low, stream]
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            second >> 32 ^ c[1] ^ np.uint64(keys[0]),
            second & low,
            first >> 32 ^ c[3] ^ np.uint64(keys[1]),
            first & low,
        ]
        keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
    return np.stack(c)[index % 4, np.arange(len(index))] * 2.0**-32


def combined(kind, x, base, weights, thresholds, densities, key, streams, seed, scale, normalize):
    """The formulas on the columns of x (N or 2N, P), in float64, models in order."""
    models = len(weights)
    if kind in ("min", "max"):
        return getattr(np, kind)(x, axis=0)
    if kind == "geometric":
        with np.errstate(divide="ignore"):
            exponent = sum(w * np.log(np.abs(row)) for w, row in zip(weights, x, strict=True))
        total = sum(w * row for w, row in zip(weights, x, strict=True))
        return np.where((x == 0).any(axis=0), 0, np.sign(total) * np.exp(exponent))
    if kind == "fisher":
        x, information = x[:models], x[models:]
        total = sum(w * f * row for w, f, row in zip(weights, information, x, strict=True))
        mass = sum(w * f for w, f in zip(weights, information, strict=True))
        plain = sum(w * row for w, row in zip(weights, x, strict=True)) / sum(weights)
        return np.where(mass == 0, plain, total / np.where(mass == 0, 1, mass))
    taus = []
    for n, row in enumerate(x):
        tau = row - base
        tau = np.where(np.abs(tau.astype(np.float32)) < thresholds[n], 0, tau)
        if densities[n] < 1:
            u = philox(seed, int(streams[n]), np.arange(len(tau)), key)
            tau = np.where(u < densities[n], tau / densities[n], 0)
        taus.append(tau)
    total = sum(w * tau for w, tau in zip(weights, taus, strict=True))
    if kind == "sum":
        return base + scale * total
    sign = np.sign(total)
    same = [(np.sign(tau) == sign) & (sign != 0) for tau in taus]
    elected = sum(np.where(s, w * tau, 0) for w, tau, s in zip(weights, taus, same, strict=True))
    mass = sum(np.where(s, w, 0.0) for w, s in zip(weights, same, strict=True))
    if normalize:
        elected = elected / np.where(mass == 0, 1, mass)
    return np.where(sign == 0, base, base + scale * elected)


def check_combine(kernels, kind, models, sizes, skip=0, dtypes=DTYPES, with_base=True, options=True):
    """Random tensors of every type, `skip` elements past a boundary; against the formulas in numpy."""
    rng = np.random.default_rng(models)
    lists = 2 * models if kind == "fisher" else models

    def draw(t, place):
        values = torch.from_numpy(rng.normal(size=sizes[t] + skip)).to(dtypes[(t + place) % len(dtypes)])
        values[rng.random(len(values)) < 0.1] = 0
        return values[skip:].abs() if kind == "fisher" and place >= models else values[skip:]

    sources = [[draw(t, n) for n in range(lists)] for t in range(len(sizes))]
    bases = [draw(t, 1) for t in range(len(sizes))] if with_base else None
    outputs = [draw(t, 2) for t in range(len(sizes))]
    weights = rng.uniform(0.1, 1, models)
    thresholds = rng.uniform(0, 0.5, (len(sizes), models)).astype(np.float32) if options else None
    densities = rng.choice([0.3, 0.8, 1.0], models) if options else None
    streams = rng.integers(0, 2**31, models) if options else None
    keys = rng.integers(0, 2**63, len(sizes), dtype=np.uint64)
    seed, scale, normalize = 12345678901, 0.7, models % 2
    flat = [x for row in sources for x in row]
    status = kernels.combine(
        len(sizes),
        (ctypes.c_longlong * len(sizes))(*sizes),
        pointers(outputs),
        codes(outputs),
        models,
        lists,
        pointers(flat),
        codes(flat),
        pointers(bases) if with_base else None,
        codes(bases) if with_base else None,
        KINDS.index(kind),
        *[
            None if values is None else values.ctypes.data_as(ctypes.c_void_p)
            for values in (weights, thresholds, densities, keys, streams)
        ],
        ctypes.c_ulonglong(seed),
        ctypes.c_double(scale),
        normalize,
    )
    assert status == 0
    assert not kernels.saw_misaligned()
    for t, output in enumerate(outputs):
        want = combined(
            kind,
            np.stack([x.double().numpy() for x in sources[t]]),
            bases[t].double().numpy() if with_base else np.zeros(sizes[t]),
            weights,
            thresholds[t] if options else np.zeros(models),
            densities if options else np.ones(models),
            int(keys[t]),
            streams if options else np.arange(models),
            seed,
            scale,
            normalize,
        )
        wanted = torch.from_numpy(want).to(torch.float32 if output.dtype.itemsize == 2 else output.dtype)
        close = {"rtol": 1e-12, "atol": 0} if kind == "geometric" else {"rtol": 0, "atol": 0}
        if output.dtype != torch.float64 and kind == "geometric":
            close["rtol"] = torch.finfo(output.dtype).eps
        torch.testing.assert_close(output, wanted.to(output.dtype), **close)


@pytest.mark.parametrize("models", [1, 2, 5, 8, 21, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_combine(kernels, kind, models):
    check_combine(kernels, kind, models, (1, 0, 7, 1024, 2051))


@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_combine_of_unaligned_memory(kernels, kind, skip):
    check_combine(kernels, kind, 3, (1030,), skip, DTYPES[::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_combine_of_many_tensors_without_base_or_options(kernels, kind):
    check_combine(kernels, kind, 9, [1 + i % 5 for i in range(300)], with_base=False, options=False)
