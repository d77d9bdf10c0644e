"""The operator gradient_norm_: against torch's clipping and GradScaler's check."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ratfast import ops

SIZES = (0, 1, 31, 32, 33, 1000, 32_768, 32_769, 70_001)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def norm_of(grads, **options):
    device = grads[0].device
    norm, multiplier = (torch.full((), math.nan, dtype=torch.float64, device=device) for _ in range(2))
    found_inf = torch.full((), math.nan, device=device)
    ops.gradient_norm_(grads, norm, multiplier, found_inf, **options)
    return norm.item(), multiplier.item(), found_inf.item()


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_clips_as_torch_does(max_norm, dtype, device):
    params = [torch.zeros(shape, dtype=dtype, device=device) for shape in ((1000,), (3, 5), (), (7, 2, 2))]
    for param in params:
        param.grad = torch.randn_like(param)
    mine = [param.grad.clone() for param in params]
    norm, multiplier, found_inf = norm_of(mine, max_norm=max_norm)
    theirs = torch.nn.utils.clip_grad_norm_(params, max_norm)
    unit = 1e-12 if dtype == torch.float64 else 2e-6
    assert norm == pytest.approx(theirs.item(), rel=unit)
    for param, grad in zip(params, mine, strict=True):
        torch.testing.assert_close(grad * multiplier, param.grad, rtol=unit, atol=unit * max_norm)
    assert found_inf == 0


@given(st.data())
def test_is_the_norm_in_float64_divided_by_the_scale(data):
    sizes = data.draw(
        st.lists(st.sampled_from([0, 1, 31, 32, 33, 1000, 32768, 32769, 70_001]), min_size=1, max_size=5)
    )
    skip = data.draw(st.integers(0, 3))
    scale = data.draw(st.sampled_from([None, 0.5, 65536.0, 3.0]))
    grads = [torch.randn(n + skip).to(data.draw(st.sampled_from(DTYPES)))[skip:] for n in sizes]
    length = math.sqrt(math.fsum(x.double().square().sum().item() for x in grads)) / (scale or 1)
    given_scale = None if scale is None else torch.tensor(scale)
    norm, multiplier, found_inf = norm_of(grads, grad_scale=given_scale, max_norm=2.0)
    assert norm == pytest.approx(length, rel=1e-12)
    assert multiplier == pytest.approx(min(1, 2.0 / (length + 1e-6)) / (scale or 1), rel=1e-12)
    assert found_inf == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_finds_what_grad_scaler_finds(dtype, bad, device):
    grads = [torch.randn(5000, device=device).to(dtype), torch.randn(70, device=device).to(dtype)]
    for place in (0, 4999, 5000, 5069):
        changed = [x.clone() for x in grads]
        changed[place // 5000][place % 5000] = bad
        assert norm_of(changed)[2] == 1
    assert norm_of(grads)[2] == 0


def test_large_gradients_do_not_overflow(device):
    norm, _, found_inf = norm_of([torch.full((1000,), 3e38, device=device)])
    assert norm == pytest.approx(3e38 * math.sqrt(1000), rel=1e-6)
    assert found_inf == 0


def test_does_not_depend_on_how_often_it_ran(device):
    grads = [torch.randn(n, device=device) for n in (5, 400_000, 77)]
    workspace = ops.step_workspace(device)
    assert len({norm_of(grads, workspace=workspace) for _ in range(5)}) == 1


def test_without_gradients_the_norm_is_zero():
    norm, multiplier = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    found_inf = torch.ones(())
    ops.gradient_norm_([], norm, multiplier, found_inf, max_norm=1.0)
    assert (norm.item(), multiplier.item(), found_inf.item()) == (0, 1, 0)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"grads": [torch.ones(3), torch.ones(3).to_sparse()]}, TypeError, r"grads\[1\] is sparse"),
        ({"grads": [torch.ones(3, dtype=torch.complex64)]}, TypeError, "complex64"),
        ({"grads": [torch.ones(3), torch.ones(3, device="meta")]}, ValueError, "is on meta"),
        ({"grads": [torch.ones(8)[::2]]}, ValueError, "not dense"),
        ({"norm": torch.zeros(())}, TypeError, "norm is float32, expected float64"),
        ({"multiplier": torch.zeros(2, dtype=torch.float64)}, ValueError, "multiplier has shape"),
        ({"found_inf": torch.zeros((), device="meta")}, ValueError, "found_inf is on meta"),
        ({"grad_scale": torch.ones((), dtype=torch.int64)}, TypeError, "grad_scale is int64"),
        ({"max_norm": -1.0}, ValueError, "max_norm is -1.0"),
        ({"max_norm": math.nan}, ValueError, "max_norm is nan"),
    ],
)
def test_refuses(changes, error, words):
    arguments = {"grads": [torch.ones(3)], "found_inf": torch.full((), 7.0)}
    arguments |= {name: torch.full((), 7.0, dtype=torch.float64) for name in ("norm", "multiplier")}
    with pytest.raises(error, match=words):
        ops.gradient_norm_(**(arguments | changes))
    assert arguments["norm"].item() == arguments["multiplier"].item() == arguments["found_inf"].item() == 7
