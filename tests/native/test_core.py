"""The torch-free module: mixing buffers, mapped files among them."""

import numpy as np
import pytest
import torch

from ratfast import native

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
        ([[BYTES.copy()]], [[BYTES]], ["float32"], [["float32"]], np.ones(1), ValueError),
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


def test_capability_is_named():
    assert core.cpu_capability() in ("avx512", "avx2", "default")
