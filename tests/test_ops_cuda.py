"""The operators on a CUDA device against the same ones on the CPU."""

import math

import pytest
import torch

from ratfast import native, ops

pytestmark = pytest.mark.cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (1, 0, 7, 1024, 5003, 70_001)


def models(count: int, device: torch.device, dtypes=DTYPES, skip: int = 0) -> tuple[list, list]:
    """`count` models of random tensors with zeros among them on the CPU, and the same on the device."""
    rows = []
    for n in range(count):
        row = [torch.randn(size + skip).to(dtypes[(n + t) % len(dtypes)]) for t, size in enumerate(SIZES)]
        for tensor in row:
            tensor[torch.rand(len(tensor)) < 0.05] = 0
        rows.append(row)
    there = [[tensor.to(device)[skip:] for tensor in row] for row in rows]
    return [[tensor[skip:] for tensor in row] for row in rows], there


@pytest.fixture(autouse=True)
def _runs_natively(cuda):
    if native.status().cuda_library is not None:
        assert native.check_cuda(cuda.index), native.status().reason


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(("num_sources", "num_outputs"), [(1, 1), (4, 1), (20, 8), (21, 3), (300, 5)])
def test_mix(cuda, num_sources, num_outputs, skip):
    here, there = models(num_sources, cuda, skip=skip)
    wanted, got = models(num_outputs, cuda)
    weights = torch.randn(num_outputs, num_sources, dtype=torch.float64) / num_sources
    ops.mix_(wanted, here, weights)
    ops.mix_(got, there, weights)
    for want_row, got_row in zip(wanted, got, strict=True):
        for want, have in zip(want_row, got_row, strict=True):
            unit = torch.finfo(want.dtype).eps
            torch.testing.assert_close(have.cpu(), want, rtol=2 * unit, atol=4e-6)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("count", [1, 4, 5, 20, 21, 40])
def test_gram(cuda, count, skip):
    here, there = models(count, cuda, skip=skip)
    got = ops.gram(there)
    assert got.device.type == "cpu"
    norms = torch.stack([torch.stack([row[t].double().norm() for row in here]) for t in range(len(SIZES))])
    error = (got - ops.gram(here)).abs()
    assert (error <= 1e-12 * norms[:, :, None] * norms[:, None, :]).all()
    assert torch.equal(got, ops.gram(there)), "the sums depend on the time of day"


def test_gram_on_a_stream_of_its_own(cuda):
    rows = torch.randn(4, 1 << 22, device=cuda)
    want = ops.gram([[row] for row in rows])
    other = torch.empty_like(rows)
    stream = torch.cuda.Stream(cuda)
    stream.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        other.copy_(rows)
        got = ops.gram([[row] for row in other])
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ops.COMBINE_KINDS)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_combine(cuda, kind, count, skip):
    here, there = models(2 * count if kind == "fisher" else count, cuda, skip=skip)
    (wanted,), (got,) = models(1, cuda, DTYPES[1:])
    options = {"weights": torch.rand(count, dtype=torch.float64) + 0.1}
    bases = there_bases = None
    if kind in ("sum", "elect"):
        (bases,), (there_bases,) = models(1, cuda, DTYPES[2:], skip)
        options |= {"thresholds": torch.rand(len(SIZES), count), "densities": torch.rand(count) + 0.2}
        options |= {"keys": range(5, 5 + len(SIZES)), "seed": 7, "scale": 0.7, "normalize": count % 2 == 0}
    ops.combine_(wanted, here, bases, kind, **options)
    ops.combine_(got, there, there_bases, kind, **options)
    for want, have in zip(wanted, got, strict=True):
        if kind == "geometric":  # the logarithms are each device's own
            unit = max(torch.finfo(want.dtype).eps, 1e-13)
            torch.testing.assert_close(have.cpu(), want, rtol=2 * unit, atol=0, equal_nan=True)
        else:
            torch.testing.assert_close(have.cpu(), want, rtol=0, atol=0, equal_nan=True)


def test_what_is_not_finite(cuda):
    rows = torch.tensor([[1.0, math.nan, math.inf, 0.0], [2.0, 3.0, -math.inf, -0.0]])
    for kind in ops.COMBINE_KINDS[:3]:
        want, got = torch.empty(4), torch.empty(4, device=cuda)
        ops.combine_([want], [[row] for row in rows], None, kind)
        ops.combine_([got], [[row] for row in rows.to(cuda)], None, kind)
        torch.testing.assert_close(got.cpu(), want, equal_nan=True)


@pytest.mark.parametrize("kind", ["mix", "elect"])
def test_replayed_in_a_graph(cuda, kind):
    rows = torch.randn(4, 10_001, device=cuda)
    output = torch.empty(10_001, device=cuda)

    def step() -> None:
        if kind == "mix":
            ops.mix_([[output]], [[row] for row in rows], [[0.25] * 4])
        else:
            ops.combine_([output], [[row] for row in rows], None, kind)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    rows.copy_(torch.randn_like(rows))
    graph.replay()
    replayed = output.clone()
    step()
    assert torch.equal(replayed, output)
