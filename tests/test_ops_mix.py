"""The operator mix_: against sums in float64, element type by element type."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ratfast import ops, reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 2, 15, 63, 64, 65, 257, 1023, 4096 + 17)


def exact(sources: list[list[Tensor]], weights: np.ndarray) -> list[list[Tensor]]:
    """K x T sums in float64."""
    return [
        [
            sum(float(w) * model[t].double().cpu() for w, model in zip(row, sources, strict=True))
            for t in range(len(sources[0]))
        ]
        for row in weights
    ]


def assert_close(outputs: list[list[Tensor]], sources: list[list[Tensor]], weights: np.ndarray) -> None:
    """On the CPU to the bit; elsewhere within the rounding of N additions and of the output's type."""
    wanted = exact(sources, weights)
    for k, row in enumerate(weights):
        for t, output in enumerate(outputs[k]):
            if not output.is_cuda:
                short = output.dtype in (torch.float16, torch.bfloat16)
                rounded = (wanted[k][t].float() if short else wanted[k][t]).to(output.dtype)
                assert torch.equal(output, rounded)
                continue
            wide = any(x.dtype == torch.float64 for x in (output, *(model[t] for model in sources)))
            epsilon = 2**-53 if wide else 2**-24
            magnitude = sum(
                abs(float(w)) * model[t].double().abs().cpu() for w, model in zip(row, sources, strict=True)
            )
            bound = (len(sources) + 1) * epsilon * magnitude
            bound = (
                bound + torch.finfo(output.dtype).eps * wanted[k][t].abs() + torch.finfo(output.dtype).tiny
            )
            assert ((output.double().cpu() - wanted[k][t]).abs() <= bound).all()


def models(count: int, sizes, dtypes, device="cpu", seed=0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(size, generator=generator, dtype=torch.float64).to(
                device, dtypes[(n + t) % len(dtypes)]
            )
            for t, size in enumerate(sizes)
        ]
        for n in range(count)
    ]


@pytest.mark.parametrize("num_outputs", [1, 2, 3, 4, 5, 9, 17])
@pytest.mark.parametrize("num_sources", [1, 2, 3, 10, 33])
def test_every_number_of_sources_and_outputs(num_outputs, num_sources, device):
    sources = models(num_sources, SIZES, (torch.float32,), device)
    weights = np.random.default_rng(0).normal(size=(num_outputs, num_sources))
    outputs = [[torch.full_like(x, torch.nan) for x in sources[0]] for _ in range(num_outputs)]
    ops.mix_(outputs, sources, torch.from_numpy(weights))
    assert_close(outputs, sources, weights)


def test_more_sources_than_a_cuda_kernel_takes(device):
    sources = models(1030, (1, 65), (torch.float32, torch.bfloat16), device)
    weights = np.random.default_rng(0).normal(size=(2, 1030))
    outputs = [[torch.full_like(x, torch.nan) for x in sources[0]] for _ in range(2)]
    ops.mix_(outputs, sources, torch.from_numpy(weights))
    assert_close(outputs, sources, weights)


@pytest.mark.parametrize(("source", "output"), list(itertools.product(DTYPES, DTYPES)))
def test_every_pair_of_element_types(source, output, device):
    sources = models(3, SIZES, (source,), device)
    weights = np.array([[0.5, -0.25, 1.5], [1.0, 2.0, 3.0]])
    outputs = [[torch.full_like(x, torch.nan, dtype=output) for x in sources[0]] for _ in range(2)]
    ops.mix_(outputs, sources, weights.tolist())
    assert_close(outputs, sources, weights)


@pytest.mark.parametrize("dtypes", [*itertools.combinations(DTYPES, 2), DTYPES])
def test_sources_of_several_element_types(dtypes, device):
    sources = models(5, SIZES, dtypes, device)
    weights = np.random.default_rng(1).normal(size=(3, 5))
    outputs = [[torch.empty(size, dtype=dtypes[-1], device=device) for size in SIZES] for _ in range(3)]
    ops.mix_(outputs, sources, weights.tolist())
    assert_close(outputs, sources, weights)


@pytest.mark.parametrize("num_outputs", [1, 2, 5, 12])
def test_outputs_may_be_sources(num_outputs, device):
    sources = models(12, SIZES, (torch.float32, torch.bfloat16), device)
    weights = np.random.default_rng(2).normal(size=(num_outputs, 12))
    before = [[x.clone() for x in model] for model in sources]
    ops.mix_(sources[:num_outputs], sources, weights.tolist())
    assert_close(sources[:num_outputs], before, weights)
    for changed, kept in zip(sources[num_outputs:], before[num_outputs:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(changed, kept, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skip", [1, 3, 8])
def test_unaligned_memory_and_its_surroundings(dtype, skip, device):
    size = 1000
    rows = [torch.randn(size + 64, dtype=torch.float64).to(device, dtype) for _ in range(3)]
    result = torch.full((size + 64,), 7.0, device=device, dtype=dtype)
    sources = [[row[skip + n : skip + n + size]] for n, row in enumerate(rows)]
    weights = np.array([[0.3, 0.3, 0.4]])
    ops.mix_([[result[skip : skip + size]]], sources, weights.tolist())
    assert_close([[result[skip : skip + size]]], sources, weights)
    assert (result[:skip] == 7).all() and (result[skip + size :] == 7).all()


@pytest.mark.parametrize("skip", [0, 1, 5])
def test_large_outputs_that_bypass_the_caches(skip):
    size = (8 << 20) // 4 + 1000
    sources = [[torch.randn(size + skip)[skip:]] for _ in range(3)]
    result = torch.full((size + 16,), 7.0)
    output = result[skip : skip + size]
    ops.mix_([[output]], sources, [[0.2, 0.3, 0.5]])
    wanted = torch.empty_like(output)
    reference.mix_([wanted], [m[0] for m in sources], torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(output, wanted, rtol=1e-6, atol=1e-6)
    assert (result[:skip] == 7).all() and (result[skip + size :] == 7).all()


def test_channels_last_and_transposed_memory(device):
    image = torch.randn(4, 8, 5, 6, device=device)
    sources = [
        [(image * n).contiguous(memory_format=torch.channels_last), torch.randn(7, 9, device=device).t()]
        for n in range(3)
    ]
    weights = np.array([[0.2, 0.3, 0.5]])
    outputs = [[torch.empty_like(x) for x in sources[0]]]
    ops.mix_(outputs, sources, weights.tolist())
    assert_close(outputs, sources, weights)


def test_strides_of_sizes_of_one_do_not_matter():
    one = torch.randn(6).as_strided((1, 6), (77, 1))
    output = torch.empty(1, 6)
    ops.mix_([[output]], [[one], [torch.ones(1, 6)]], [[1.0, 1.0]])
    torch.testing.assert_close(output, one + 1)


def test_thousands_of_small_tensors(device):
    sizes = [1 + i % 70 for i in range(3000)]
    sources = models(3, sizes, (torch.float32,), device)
    weights = np.array([[0.25, 0.25, 0.5]])
    outputs = [[torch.empty_like(x) for x in sources[0]]]
    ops.mix_(outputs, sources, weights.tolist())
    assert_close(outputs, sources, weights)


def test_scalars_and_empty_tensors(device):
    sources = [[torch.tensor(2.0, device=device), torch.empty(0, 3, device=device)] for _ in range(2)]
    outputs = [[torch.zeros((), device=device), torch.empty(0, 3, device=device)]]
    ops.mix_(outputs, sources, [[1.0, 2.0]])
    assert outputs[0][0].item() == 6.0
    ops.mix_([], sources, torch.empty(0, 2))
    ops.mix_([[]], [[], []], [[1.0, 2.0]])
    ops.mix_([[torch.empty(0)]], [[torch.empty(0)]], [[1.0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_nan_and_subnormals_survive(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0, tiny, -tiny], dtype=dtype)
    values = values.repeat(20)
    output = torch.empty_like(values)
    ops.mix_([[output]], [[values]], [[1.0]])
    torch.testing.assert_close(output, values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_value_of_the_short_types_converts(dtype):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = torch.empty(values.shape)
    ops.mix_([[wide]], [[values]], [[1.0]])
    torch.testing.assert_close(wide, values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_the_short_types_is_torchs(dtype):
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0))
    edges = torch.tensor(
        [65504.0, 65519.996, 65520.0, 65536.0, 2**-24, 2**-25, 1.5 * 2**-25, 6.097e-5, 6.1e-5]
    )
    values = torch.cat([bits.to(torch.int32).view(torch.float32), edges, -edges, 1 + edges * 2**-24])
    output = torch.empty(values.shape, dtype=dtype)
    ops.mix_([[output]], [[values]], [[1.0]])
    torch.testing.assert_close(output, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_problem_agrees_with_float64(data):
    num_outputs = data.draw(st.integers(1, 6))
    num_sources = data.draw(st.integers(1, 6))
    sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
    pick = st.sampled_from(DTYPES)
    sources = []
    for n in range(num_sources):
        row = [torch.randn(size + 8, generator=torch.Generator().manual_seed(n)) for size in sizes]
        skip = data.draw(st.integers(0, 8))
        sources.append([x[skip : skip + s].to(data.draw(pick)) for x, s in zip(row, sizes, strict=True)])
    outputs = [[torch.empty(s, dtype=data.draw(pick)) for s in sizes] for _ in range(num_outputs)]
    weight = st.floats(-2, 2, allow_subnormal=False, width=32)
    weights = np.array([[data.draw(weight) for _ in range(num_sources)] for _ in range(num_outputs)])
    ops.mix_(outputs, sources, weights.tolist())
    assert_close(outputs, sources, weights)


def test_result_does_not_depend_on_threads():
    sizes = [3, 70_001, 128, 250_000, 5]
    sources = models(7, sizes, (torch.float32,))
    weights = torch.rand(5, 7, dtype=torch.float64)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs = [[torch.empty(size) for size in sizes] for _ in range(5)]
            ops.mix_(outputs, sources, weights)
            results.append(outputs)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(itertools.chain(*results[0]), itertools.chain(*other), strict=True):
            assert torch.equal(a, b)


def test_devices_agree_to_the_bit(cuda):
    sources = models(9, SIZES, (torch.float32, torch.bfloat16))
    weights = torch.rand(3, 9, dtype=torch.float64)
    on_cpu = [[torch.empty(size) for size in SIZES] for _ in range(3)]
    on_cuda = [[torch.empty(size, device=cuda) for size in SIZES] for _ in range(3)]
    ops.mix_(on_cpu, sources, weights)
    ops.mix_(on_cuda, [[x.to(cuda) for x in model] for model in sources], weights)
    for a, b in zip(itertools.chain(*on_cpu), itertools.chain(*on_cuda), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=0)
