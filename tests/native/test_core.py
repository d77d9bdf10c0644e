"""The torch-free module: averaging buffers, mapped files among them."""

import numpy as np
import pytest
import torch

from ratfast import native, reference

core = native.load_core()
pytestmark = pytest.mark.skipif(core is None, reason="the module _core is not built")

NAMES = ("float64", "float32", "float16", "bfloat16")


def buffer(values: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor, as a writable view."""
    return values.view(torch.uint8).numpy()


def mix(outputs, sources, weights, threads=2):
    names = [str(x.dtype).removeprefix("torch.") for x in outputs[0]]
    core.mix(
        [[buffer(x) for x in model] for model in outputs],
        [[buffer(x) for x in model] for model in sources],
        names,
        [[str(x.dtype).removeprefix("torch.") for x in model] for model in sources],
        np.asarray(weights, dtype=np.float64),
        threads,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_agrees_with_float64(name, threads):
    dtype = getattr(torch, name)
    sizes = (1, 100, 70_000, 33)
    sources = [[torch.randn(size).to(dtype) for size in sizes] for _ in range(4)]
    outputs = [[torch.empty(size, dtype=dtype) for size in sizes] for _ in range(2)]
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, -1.0, 0.5, 0.0]])
    mix(outputs, sources, weights, threads)
    for row, model in zip(weights, outputs, strict=True):
        for t, got in enumerate(model):
            wanted = sum(w * source[t].double() for w, source in zip(row, sources, strict=True))
            unit = max(torch.finfo(dtype).eps, 2**-52)
            torch.testing.assert_close(
                got.double(), wanted, rtol=unit, atol=8 * max(unit / 4, 2**-24 * (unit > 2**-50))
            )


def test_mapped_files_at_odd_offsets(tmp_path):
    values = [np.random.default_rng(n).normal(size=5000).astype(np.float32) for n in range(3)]
    sources = []
    for n, array in enumerate(values):
        path = tmp_path / f"{n}"
        path.write_bytes(b"x" * (n + 1) + array.tobytes())
        sources.append([np.memmap(path, dtype=np.uint8, mode="r", offset=n + 1)])
    output = np.zeros(20_000, dtype=np.uint8)
    core.mix([[output]], sources, ["float32"], [["float32"]] * 3, np.array([[0.5, 0.25, 0.25]]), 2)
    wanted = 0.5 * values[0] + 0.25 * values[1] + 0.25 * values[2]
    np.testing.assert_allclose(output.view(np.float32), wanted, rtol=1e-5, atol=1e-6)


def test_output_may_be_a_source():
    sources = [[torch.ones(1000)], [torch.full((1000,), 3.0)]]
    mix([sources[0]], sources, [[0.5, 0.5]])
    assert (sources[0][0] == 2).all()


def test_accepts_memoryviews_and_bytes():
    output = bytearray(8)
    source = np.array([1.0, 2.0], dtype=np.float32).tobytes()
    core.mix([[memoryview(output)]], [[source]], ["float32"], [["float32"]], np.array([[2.0]]), 1)
    assert np.frombuffer(output, dtype=np.float32).tolist() == [2.0, 4.0]


BYTES = np.zeros(8, dtype=np.uint8)
READ_ONLY = np.zeros(8, dtype=np.uint8)
READ_ONLY.flags.writeable = False
SHARED = np.zeros(16, dtype=np.uint8)


@pytest.mark.parametrize(
    ("outputs", "sources", "dtypes_out", "dtypes_in", "weights", "error"),
    [
        ([[BYTES]], [], ["float32"], [], np.empty((1, 0)), ValueError),
        ([[BYTES.copy()]], [[BYTES]], ["float32"], [["float32"]], np.ones((1, 2)), ValueError),
        ([[BYTES.copy()]], [[BYTES]], ["float32"], [["float32"]], np.ones(1), TypeError),
        ([[BYTES.copy()]], [[BYTES[:4]]], ["float32"], [["float32"]], np.ones((1, 1)), ValueError),
        ([[BYTES.copy()]], [[BYTES]], ["float32"], [["float16"]], np.ones((1, 1)), ValueError),
        ([[BYTES.copy()]], [[BYTES[:6]]], ["float32"], [["float32"]], np.ones((1, 1)), ValueError),
        ([[BYTES.copy()]], [[BYTES]], ["float32"], [["int64"]], np.ones((1, 1)), TypeError),
        ([[BYTES.copy()]], [[BYTES, BYTES]], ["float32"], [["float32"]], np.ones((1, 1)), ValueError),
        ([[BYTES.copy()]], [[BYTES]], ["float32"], [], np.ones((1, 1)), ValueError),
        (
            [[BYTES.copy()]],
            [[BYTES.view(np.float32)]],
            ["float32"],
            [["float32"]],
            np.ones((1, 1)),
            ValueError,
        ),
        ([[BYTES.copy()]], [[SHARED[::2]]], ["float32"], [["float32"]], np.ones((1, 1)), ValueError),
        ([[READ_ONLY]], [[BYTES]], ["float32"], [["float32"]], np.ones((1, 1)), ValueError),
        ([[SHARED[4:12]]], [[SHARED[:8]]], ["float32"], [["float32"]], np.ones((1, 1)), ValueError),
        ([[SHARED[4:12]], [SHARED[:8]]], [[BYTES]], ["float32"], [["float32"]], np.ones((2, 1)), ValueError),
    ],
)
def test_refuses(outputs, sources, dtypes_out, dtypes_in, weights, error):
    with pytest.raises(error):
        core.mix(outputs, sources, dtypes_out, dtypes_in, weights, 1)


def name_of(tensor):
    return str(tensor.dtype).removeprefix("torch.")


def odd(values: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor at an odd address."""
    room = np.zeros(values.nbytes + 64, dtype=np.uint8)
    skip = 1 + (-room.ctypes.data) % 8
    room[skip : skip + values.nbytes] = values.view(torch.uint8).numpy()
    return room[skip : skip + values.nbytes]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_sums_at_odd_addresses_are_those_of_plain_torch(name, threads):
    sources = [torch.randn(70_003).to(getattr(torch, name)) for _ in range(4)]
    weights = np.random.default_rng(0).normal(size=(3, 4))
    wanted = [torch.empty_like(sources[0]) for _ in range(3)]
    reference.mix_(wanted, sources, torch.from_numpy(weights))
    outputs = [odd(torch.zeros_like(sources[0])) for _ in range(3)]
    finite = core.mix(
        [[x] for x in outputs], [[odd(x)] for x in sources], [name], [[name]] * 4, weights, threads
    )
    assert finite is True
    for output, want in zip(outputs, wanted, strict=True):
        assert output.tobytes() == buffer(want).tobytes()


@pytest.mark.parametrize("kind", ["min", "max", "fisher", "sum", "elect"])
def test_combine_of_pieces_is_that_of_the_whole(kind):
    of_base = kind in ("sum", "elect")
    sources = [torch.randn(3001).to(getattr(torch, name)) for name in NAMES]
    models = 2 if kind == "fisher" else 4
    base = torch.randn(3001) if of_base else None
    options = {
        "weights": torch.rand(models, dtype=torch.float64),
        "thresholds": torch.full((1, models), 0.5) if of_base else None,
        "densities": torch.full((models,), 0.6, dtype=torch.float64) if of_base else None,
        "keys": torch.tensor([12345678901]),
        "streams": torch.arange(models) + 3,
    }
    wanted = torch.empty(3001)
    reference.combine_([wanted], sources, [base] if of_base else [], kind, **options, seed=9, scale=0.5)
    arrays = {key: None if value is None else value.numpy() for key, value in options.items()}
    got = torch.empty(3001)
    for begin, end in ((0, 7), (7, 1290), (1290, 3001)):
        assert core.combine(
            [buffer(got[begin:end])],
            [[odd(x[begin:end])] for x in sources],
            [odd(base[begin:end])] if of_base else None,
            ["float32"],
            [[name] for name in NAMES],
            ["float32"] if of_base else None,
            kind,
            **arrays,
            first=np.array([begin]),
            seed=9,
            scale=0.5,
            normalize=True,
            threads=2,
        )
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_gram_and_kth_magnitudes_of_buffers(threads):
    sources = [torch.randn(70_003).to(getattr(torch, name)) for name in NAMES]
    got = core.gram([[odd(x)] for x in sources], [[name] for name in NAMES], threads)
    rows = torch.stack([x.double() for x in sources]).numpy()
    np.testing.assert_allclose(got, (rows @ rows.T)[None], rtol=1e-12, atol=1e-9)
    magnitudes = np.sort((sources[3].double() - sources[1].double()).float().abs().numpy())[::-1]
    arguments = ([odd(sources[3])], [odd(sources[1])], ["bfloat16"], ["float32"])
    for count in (1, 500, 70_002):
        for together in (False, True):
            found = core.kth_magnitudes(*arguments, np.array([count]), together, threads)
            assert found.dtype == np.float32 and found.tolist() == [magnitudes[count - 1]]


# The largest double that still rounds to a finite number, and the next one.
EDGES = {
    "float64": (np.finfo(np.float64).max, np.inf),
    "float32": (np.nextafter(2.0**128 - 2.0**103, 0), 2.0**128 - 2.0**103),
    "float16": (np.nextafter(65520 - 2.0**-9, 0), 65520 - 2.0**-9),
    "bfloat16": (
        np.nextafter(2.0**128 - 2.0**119 - 2.0**103, 0),
        2.0**128 - 2.0**119 - 2.0**103,
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, 5, 100])
def test_says_whether_outputs_are_finite(name, sign, place):
    for value, finite in zip(EDGES[name], (True, False), strict=True):
        source = torch.zeros(101, dtype=torch.float64)
        source[place] = sign * value
        for count in (1, 3):
            outputs = [[torch.empty(101, dtype=getattr(torch, name))] for _ in range(count)]
            weights = np.ones((count, 1))
            assert (
                core.mix(
                    [[buffer(x)] for (x,) in outputs], [[buffer(source)]], [name], [["float64"]], weights, 1
                )
                is finite
            )
            assert outputs[-1][0].isfinite().all() == finite


def test_nan_is_not_finite():
    source, output = torch.full((40,), torch.nan), torch.empty(40)
    assert not core.mix(
        [[buffer(output)]], [[buffer(source)]], ["float32"], [["float32"]], np.ones((1, 1)), 1
    )


def combine(**changes):
    arguments = {
        "outputs": [BYTES.copy()],
        "sources": [[BYTES], [BYTES]],
        "bases": None,
        "dtypes_out": ["float32"],
        "dtypes_in": [["float32"], ["float32"]],
        "dtypes_base": None,
        "kind": "sum",
        "weights": np.ones(2),
        "thresholds": None,
        "densities": None,
        "keys": None,
        "streams": None,
        "first": None,
        "seed": 0,
        "scale": 1.0,
        "normalize": True,
        "threads": 1,
    }
    return core.combine(**(arguments | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "median"},
        {"sources": [], "dtypes_in": []},
        {"kind": "fisher", "sources": [[BYTES]] * 3, "dtypes_in": [["float32"]] * 3},
        {"weights": np.ones(3)},
        {"thresholds": np.ones(2)},
        {"densities": np.ones(2)},  # without keys
        {"keys": np.ones(2, dtype=np.uint64)},
        {"bases": [BYTES]},  # without types
        {"bases": [BYTES[:4]], "dtypes_base": ["float32"]},
        {"outputs": [READ_ONLY]},
        {"outputs": [SHARED[4:12]], "sources": [[SHARED[:8]], [BYTES]]},
        {"outputs": [SHARED[4:12]], "bases": [SHARED[:8]], "dtypes_base": ["float32"]},
    ],
)
def test_combine_refuses(changes):
    assert combine() is True
    with pytest.raises(ValueError):
        combine(**changes)


def test_gram_and_kth_magnitudes_refuse():
    with pytest.raises(ValueError):
        core.gram([], [], 1)
    with pytest.raises(ValueError):
        core.gram([[BYTES], [BYTES[:4]]], [["float32"]] * 2, 1)
    with pytest.raises(TypeError):
        core.gram([[BYTES]], [["int8"]], 1)
    with pytest.raises(ValueError):
        core.kth_magnitudes([BYTES], None, ["float32"], None, np.array([1, 2]), False, 1)
    with pytest.raises(ValueError):
        core.kth_magnitudes([BYTES], [BYTES], ["float32"], None, np.array([1]), False, 1)


def test_capability_is_named():
    assert core.cpu_capability() in ("avx512", "avx2", "default")
