"""The steps themselves: against torch.optim and against the formula."""

import itertools

import numpy as np
import pytest
import torch

from ratfast.optim import FusedAdam, FusedAdamW

PAIRS = [(FusedAdam, torch.optim.Adam), (FusedAdamW, torch.optim.AdamW)]
# Largest relative difference, in units of the parameters' own rounding, after hundreds of steps in one type.
TOLERANCES = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
}


def parameters(seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (33,), (), (4, 3, 3, 3), (0, 4), (1,)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def set_gradients(groups, step, scale=1.0):
    """The same gradients for parallel lists of parameters, of another magnitude in every step."""
    generator = torch.Generator().manual_seed(1000 + step)
    for same in zip(*groups, strict=True):
        grad = (
            torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
            * scale
            * 10.0 ** (step % 5 - 3)
        )
        for param in same:
            param.grad = grad.to(param.device, param.dtype)


def run(pair, options, *, steps, dtype=torch.float32, device="cpu", peer=None):
    ours, theirs = parameters(dtype=dtype, device=device), parameters(dtype=dtype, device=device)
    optimizer = pair[0](ours, **options)
    other = pair[1](theirs, **options, **(peer or {"foreach": False}))
    for step in range(steps):
        set_gradients([ours, theirs], step)
        optimizer.step()
        other.step()
    return ours, theirs, optimizer, other


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize(
    ("amsgrad", "maximize", "weight_decay"), list(itertools.product([False, True], [False, True], [0, 0.1]))
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_follows_torch_for_hundreds_of_steps(pair, amsgrad, maximize, weight_decay, dtype, device):
    options = {"lr": 1e-2, "amsgrad": amsgrad, "maximize": maximize, "weight_decay": weight_decay}
    ours, theirs, optimizer, other = run(pair, options, steps=300, dtype=dtype, device=device)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, **TOLERANCES[dtype])
        for key, value in other.state[its].items():
            torch.testing.assert_close(optimizer.state[mine][key], value, **TOLERANCES[dtype])


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_are_stepped_in_float32(pair, dtype):
    """One step from equal states differs from a float64 step by the rounding of the result alone."""
    ours = parameters(dtype=dtype)
    wide = [param.detach().double().requires_grad_() for param in ours]
    optimizer, other = pair[0](ours, lr=1e-2, eps=1e-4), pair[1](wide, lr=1e-2, eps=1e-4)
    set_gradients([ours, wide], 3)
    for param, its in zip(ours, wide, strict=True):
        its.grad = param.grad.double()
    optimizer.step()
    other.step()
    half_an_ulp = torch.finfo(dtype).eps / 2
    for mine, its in zip(ours, wide, strict=True):
        assert optimizer.state[mine]["exp_avg"].dtype == dtype
        torch.testing.assert_close(mine.double(), its, rtol=1.01 * half_an_ulp, atol=1e-7)


def formula(values, gradients, *, lr, betas, eps, weight_decay, decoupled, amsgrad, maximize):
    """Adam, algorithm 1 of arXiv 1412.6980, with arXiv 1711.05101's decay and AMSGrad, in float64."""
    theta = np.array(values, dtype=np.float64)
    m, v, largest = (np.zeros_like(theta) for _ in range(3))
    for t, g in enumerate(gradients, start=1):
        g = -np.asarray(g, dtype=np.float64) if maximize else np.asarray(g, dtype=np.float64)
        if decoupled:
            theta = theta - lr * weight_decay * theta
        else:
            g = g + weight_decay * theta
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v) if amsgrad else v
        theta = theta - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(largest / (1 - betas[1] ** t)) + eps)
    return theta


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_formula_in_float64(decoupled, amsgrad, maximize):
    options = {"lr": 3e-3, "betas": (0.85, 0.97), "eps": 1e-6, "weight_decay": 0.05}
    options |= {"amsgrad": amsgrad, "maximize": maximize}
    rng = np.random.default_rng(5)
    values, gradients = rng.normal(size=41), rng.normal(size=(200, 41)) * np.linspace(3, 0.1, 200)[:, None]
    expected = formula(values, gradients, decoupled=decoupled, **options)
    param = torch.tensor(values, requires_grad=True)
    optimizer = FusedAdam([param], decoupled_weight_decay=decoupled, **options)
    for gradient in gradients:
        param.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    assert not np.allclose(expected, values, atol=1e-3)


def test_a_gradient_of_other_strides_is_paired_by_index():
    param = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    param.grad = torch.arange(96.0).reshape(2, 3, 4, 4) - 48
    expected = torch.sign(param.grad)
    FusedAdam([param], lr=1.0, eps=0).step()
    torch.testing.assert_close(-param.detach()[expected != 0], expected[expected != 0])


def test_mixed_types_in_one_group():
    ours = [param for dtype in (torch.float32, torch.float64) for param in parameters(dtype=dtype)]
    theirs = [param for dtype in (torch.float32, torch.float64) for param in parameters(dtype=dtype)]
    optimizer, other = FusedAdam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for step in range(5):
        set_gradients([ours, theirs], step)
        optimizer.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
def test_mixed_devices_in_one_group(cuda):
    ours, theirs = (parameters() + parameters(device=cuda) for _ in range(2))
    optimizer, other = FusedAdam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for step in range(5):
        set_gradients([ours, theirs], step)
        optimizer.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
