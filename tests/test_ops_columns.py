"""The operators gram, combine_ and kth_magnitudes: native code against plain torch, and that against float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from ratfast import ops, reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EXACT_KINDS = tuple(kind for kind in ops.COMBINE_KINDS if kind != "geometric")


def draw_tensor(data, size: int, seed: int) -> Tensor:
    """A tensor of any type that starts anywhere."""
    dtype = data.draw(st.sampled_from(DTYPES))
    skip = data.draw(st.integers(0, 9))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size + skip, generator=generator, dtype=torch.float64).to(dtype)[skip:]


def by_loop(kind, x, f, base, weights, thresholds, kept, densities, scale, normalize):
    """One element by the published formulas, in Python's floats: x[n], f[n] and the model's draws kept[n]."""
    if kind in ("min", "max"):
        return min(x) if kind == "min" else max(x)
    if kind == "geometric":
        if 0.0 in x:
            return 0.0
        magnitude = math.exp(sum(w * math.log(abs(v)) for w, v in zip(weights, x, strict=True)))
        return math.copysign(magnitude, sum(w * v for w, v in zip(weights, x, strict=True)))
    if kind == "fisher":
        above, below = 0.0, 0.0
        for w, v, i in zip(weights, x, f, strict=True):
            above += w * i * v
            below += w * i
        if below == 0:
            return sum(w * v for w, v in zip(weights, x, strict=True)) / sum(weights)
        return above / below
    taus = []
    for v, threshold, keep, density in zip(x, thresholds, kept, densities, strict=True):
        tau = v - base
        if abs(np.float32(tau)) < np.float32(threshold):
            tau = 0.0
        elif density < 1:
            tau = tau / density if keep < density else 0.0
        taus.append(tau)
    total = 0.0
    for w, tau in zip(weights, taus, strict=True):
        total += w * tau
    if kind == "sum":
        return base + scale * total
    if total == 0:
        return base
    above, below = 0.0, 0.0
    for w, tau in zip(weights, taus, strict=True):
        if tau * total > 0:
            above += w * tau
            below += w
    return base + scale * (above / below if normalize else above)


@given(data=st.data())
def test_combine_agrees_with_the_formulas_and_with_plain_torch(data):
    kind = data.draw(st.sampled_from(ops.COMBINE_KINDS))
    models = data.draw(st.integers(1, 5))
    sizes = data.draw(st.lists(st.integers(0, 600), min_size=1, max_size=3))
    lists = 2 * models if kind == "fisher" else models
    sources = [[draw_tensor(data, size, 10 * n + t) for t, size in enumerate(sizes)] for n in range(lists)]
    if kind == "fisher":
        sources[models:] = [[x.abs() for x in model] for model in sources[models:]]
    of_base = kind in ("sum", "elect")
    bases = [draw_tensor(data, size, 99 + t) for t, size in enumerate(sizes)] if of_base else None
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    weights = rng.uniform(0.1, 1, models)
    trimmed, thinned = (of_base and data.draw(st.booleans()) for _ in range(2))
    thresholds = rng.uniform(0, 1, (len(sizes), models)).astype(np.float32) if trimmed else None
    densities = rng.uniform(0.2, 1.2, models) if thinned else None
    keys = [int(rng.integers(2**63)) * 2 + 1 for _ in sizes]
    streams = [int(rng.integers(2**32)) for _ in range(models)]
    options = {
        "weights": weights,
        "thresholds": thresholds,
        "densities": densities,
        "keys": keys,
        "streams": streams,
        "seed": 2**32 + 5,
        "scale": 0.7,
        "normalize": data.draw(st.booleans()),
    }
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in sizes]
    outputs = [torch.full((size,), 7.0, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    ops.combine_(outputs, sources, bases, kind, **options)

    plain = [torch.empty_like(output) for output in outputs]
    tensors = {
        name: None if options[name] is None else torch.as_tensor(options[name])
        for name in ("weights", "thresholds", "densities")
    }
    reference.combine_(
        plain,
        [x for model in sources for x in model],
        bases or [],
        kind,
        **{
            **options,
            **tensors,
            "seed": 5,
            "streams": torch.tensor(streams),
            "keys": torch.from_numpy(np.array(keys, dtype=np.uint64).view(np.int64)),
        },
    )
    for t, (output, other) in enumerate(zip(outputs, plain, strict=True)):
        if kind == "geometric":
            torch.testing.assert_close(output, other)
        else:
            assert torch.equal(output, other)
        draws = [reference.uniforms(sizes[t], 5, stream, keys[t]).tolist() for stream in streams]
        columns = [model[t].double().tolist() for model in sources]
        wanted = [
            by_loop(
                kind,
                [column[i] for column in columns[:models]],
                [column[i] for column in columns[models:]],
                0.0 if bases is None else bases[t][i].item(),
                weights.tolist(),
                [0.0] * models if thresholds is None else thresholds[t].tolist(),
                [row[i] for row in draws],
                [1.0] * models if densities is None else densities.tolist(),
                0.7,
                options["normalize"],
            )
            for i in range(sizes[t])
        ]
        exact = torch.tensor(wanted, dtype=torch.float64)
        exact = (exact if output.dtype in (torch.float64, torch.float32) else exact.float()).to(output.dtype)
        if kind in ("geometric", "fisher"):
            torch.testing.assert_close(output, exact)
        else:
            assert torch.equal(output, exact)


def test_philox_is_the_published_one():
    words = (reference.uniforms(4, 0, 0, 0) * 2**32).long().tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123's kat_vectors


@pytest.mark.parametrize("kind", ops.COMBINE_KINDS)
def test_zeros_infinities_and_nan(kind):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan], dtype=torch.float64)
    pairs = torch.cartesian_prod(values, values, values)
    sources = [[pairs[:, n].contiguous()] for n in range(3)]
    if kind == "fisher":
        sources += [[pairs[:, n].abs().contiguous()] for n in (2, 0, 1)]
    output, plain = torch.empty(len(pairs)), torch.empty(len(pairs))
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    ops.combine_([output], sources, None, kind, weights=weights)
    reference.combine_([plain], [model[0] for model in sources], [], kind, weights=weights)
    torch.testing.assert_close(output, plain, rtol=1e-6, atol=0, equal_nan=True)
    if kind != "fisher":
        assert output[pairs.isnan().any(1)].isnan().all()


@pytest.mark.parametrize("kind", ["sum", "elect"])
@pytest.mark.parametrize("place", ["source", "base"])
def test_combine_in_place(kind, place):
    sources = [[torch.randn(5000)] for _ in range(3)]
    base = [torch.randn(5000)]
    wanted = [torch.empty(5000)]
    ops.combine_(wanted, sources, base, kind, densities=[0.5] * 3)
    target = sources[1] if place == "source" else base
    ops.combine_(target, sources, base, kind, densities=[0.5] * 3)
    assert torch.equal(target[0], wanted[0])


@pytest.mark.parametrize(
    "threshold",
    [
        0.1,
        0.10000001,
        1.0,
        1.0000001,
        2.0**-126,
        2.0**-149,
        3 * 2.0**-149,
        3.4028235e38,
        math.inf,
        math.nan,
        0.0,
        -1.0,
    ],
)
def test_thresholds_are_compared_as_floats(threshold):
    """Differences in float64 about the places where a float32 begins to be below another."""
    single = np.float32(threshold)
    with np.errstate(all="ignore"):
        below = np.nextafter(single, np.float32(-np.inf), dtype=np.float32)
        halfway = (float(below) + (2.0**128 if np.isinf(single) else float(single))) / 2
    near = np.array(
        [float(single), float(below), halfway, np.nextafter(halfway, np.inf), np.nextafter(halfway, 0)]
    )
    values = torch.from_numpy(np.concatenate([near, -near, [0.0, np.nan, np.inf]] * 3))
    found = torch.empty_like(values)
    ops.combine_([found], [[values]], None, "sum", thresholds=[[threshold]])
    with np.errstate(all="ignore"):
        dropped = np.abs(values.numpy().astype(np.float32)) < single
    expected = torch.where(torch.from_numpy(dropped), 0.0, values)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_results_do_not_depend_on_threads():
    sources = [[torch.randn(300_001), torch.randn(5)] for _ in range(4)]
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs = [torch.empty(300_001), torch.empty(5)]
            ops.combine_(outputs, sources, sources[0], "elect", densities=[0.5] * 4)
            found = ops.kth_magnitudes(sources[0], sources[1], [1000, 2])
            results.append([*outputs, ops.gram(sources), found])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@given(data=st.data())
def test_gram_agrees_with_float64(data):
    models = data.draw(st.sampled_from([1, 2, 3, 5, 24, 25, 50]))
    sizes = data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=3))
    sources = [[draw_tensor(data, size, 10 * n + t) for t, size in enumerate(sizes)] for n in range(models)]
    got = ops.gram(sources).numpy()
    for t in range(len(sizes)):
        rows = np.stack([model[t].double().numpy() for model in sources])
        bound = 1e-15 * (len(rows[0]) + 1) * (np.abs(rows) @ np.abs(rows).T)
        assert (np.abs(got[t] - rows @ rows.T) <= bound).all()
        assert (got[t] == got[t].T).all()


def test_gram_of_many_parts_is_nearly_exact():
    sources = [[torch.randn(100_003)] for _ in range(3)]
    got = ops.gram(sources)[0]
    for i in range(3):
        for j in range(3):
            wanted = math.fsum((sources[i][0].double() * sources[j][0].double()).tolist())
            assert got[i, j].item() == pytest.approx(wanted, rel=1e-11, abs=1e-9)


@given(data=st.data())
def test_kth_magnitudes_are_exact(data):
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 100, 257, 40_000]), min_size=1, max_size=3))
    sources = [draw_tensor(data, size, t) for t, size in enumerate(sizes)]
    bases = None
    if data.draw(st.booleans()):
        bases = [draw_tensor(data, size, 50 + t) for t, size in enumerate(sizes)]
    magnitudes = []
    for t, source in enumerate(sources):
        base = 0.0 if bases is None else bases[t].double()
        magnitudes.append((source.double() - base).float().abs().numpy())

    def wanted(values, count):
        return np.inf if count == 0 else 0.0 if count >= len(values) else np.sort(values)[len(values) - count]

    counts = [data.draw(st.integers(0, size + 1)) for size in sizes]
    got = ops.kth_magnitudes(sources, bases, counts)
    assert got.tolist() == [wanted(v, c) for v, c in zip(magnitudes, counts, strict=True)]
    count = data.draw(st.integers(0, sum(sizes)))
    together = ops.kth_magnitudes(sources, bases, count, together=True)
    assert together.shape == () and together.item() == wanted(np.concatenate(magnitudes), count)


def test_ties_and_nan_rank_by_magnitude():
    row = torch.tensor([1.0, -2.0, 2.0, math.nan, 0.0])
    for repeats in (1, 10_000):  # below and above the size from which histograms are made
        found = [ops.kth_magnitudes([row.repeat(repeats)], None, [k * repeats]).item() for k in range(1, 5)]
        assert math.isnan(found[0]) and found[1:] == [2.0, 2.0, 1.0]


ONE = [torch.ones(3)]
MODELS = [[torch.ones(3)], [torch.ones(3)]]
BASE = torch.arange(16.0)


@pytest.mark.parametrize(
    ("outputs", "sources", "bases", "kind", "options", "error", "words"),
    [
        (ONE, [], None, "sum", {}, ValueError, "sources is empty"),
        (ONE, MODELS, None, "median", {}, ValueError, "kind is 'median'"),
        (ONE, [*MODELS, ONE], None, "fisher", {}, ValueError, "Fisher diagonals"),
        (ONE, [[torch.ones(3)] * 2], None, "sum", {}, ValueError, r"sources\[0\] has 2 tensors"),
        (ONE, MODELS, [], "sum", {}, ValueError, "bases has 0 tensors"),
        (ONE, MODELS, ONE, "max", {}, ValueError, "bases go with"),
        (ONE, MODELS, None, "min", {"densities": [1, 1]}, ValueError, "densities go with"),
        (ONE, MODELS, None, "sum", {"weights": [1.0]}, ValueError, "weights has shape"),
        (ONE, MODELS, None, "sum", {"thresholds": [1.0, 1.0]}, ValueError, "thresholds has shape"),
        (ONE, MODELS, None, "sum", {"keys": [1, 2]}, ValueError, "keys has 2 numbers"),
        (ONE, MODELS, None, "sum", {"keys": [2**64]}, ValueError, "keys must lie"),
        (ONE, MODELS, None, "sum", {"streams": [0, -1]}, ValueError, "streams must lie"),
        (ONE, [[torch.ones(4)]] * 2, None, "sum", {}, ValueError, r"sources\[0\]\[0\] has shape"),
        (ONE, [[torch.ones(3).long()]], None, "sum", {}, TypeError, "int64"),
        ([BASE[1:5]], [[BASE[0:4]]], None, "sum", {}, ValueError, "overlaps"),
        ([BASE[1:5]], [[torch.ones(4)]], [BASE[0:4]], "sum", {}, ValueError, r"overlaps bases\[0\]"),
    ],
)
def test_combine_refuses(outputs, sources, bases, kind, options, error, words):
    with pytest.raises(error, match=words):
        ops.combine_(outputs, sources, bases, kind, **options)


def test_gram_and_kth_magnitudes_refuse():
    with pytest.raises(ValueError, match="sources is empty"):
        ops.gram([])
    with pytest.raises(ValueError, match="has shape"):
        ops.gram([ONE, [torch.ones(4)]])
    with pytest.raises(ValueError, match=r"sources\[1\] has 0 tensors"):
        ops.gram([ONE, []])
    with pytest.raises(ValueError, match="counts has shape"):
        ops.kth_magnitudes(ONE, None, [1, 2])
    with pytest.raises(ValueError, match="one integer"):
        ops.kth_magnitudes(ONE, None, [1], together=True)
    with pytest.raises(ValueError, match="negative"):
        ops.kth_magnitudes(ONE, None, [-1])
    with pytest.raises(ValueError, match="bases has 2 tensors"):
        ops.kth_magnitudes(ONE, ONE * 2, [1])


def test_nothing_is_an_answer():
    assert ops.gram([[], []]).shape == (0, 2, 2)
    assert ops.gram([[torch.empty(0)]]).tolist() == [[[0.0]]]
    ops.combine_([], [[], []], None, "sum")
    ops.combine_([torch.empty(0)], [[torch.empty(0)]], None, "min")
    assert ops.kth_magnitudes([], None, []).shape == (0,)
    assert ops.kth_magnitudes([], None, 0, together=True).item() == math.inf


def test_operators_pass_opcheck():
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    flat = [torch.randn(10) for _ in range(4)]
    two = torch.ones(2, dtype=torch.float64)
    opcheck(torch.ops.ratfast.gram.default, (flat, 2), test_utils=tests)
    opcheck(
        torch.ops.ratfast.kth_magnitudes.default,
        (flat, [], torch.tensor([1, 2, 3, 4]), False),
        test_utils=tests,
    )
    options = {"weights": two, "thresholds": None, "densities": None, "keys": None, "streams": None}
    options |= {"seed": 0, "scale": 1.0, "normalize": True}
    outputs = [torch.empty(10), torch.empty(10)]
    bases = [torch.randn(10), torch.randn(10)]
    opcheck(torch.ops.ratfast.combine_.default, (outputs, flat, bases, "elect"), options, test_utils=tests)


def test_combine_tells_autograd():
    output = torch.empty(3)
    version = output._version
    ops.combine_([output], MODELS, None, "sum")
    assert output._version > version
