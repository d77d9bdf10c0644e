"""Thousands of steps against float64, and CUDA graphs that repeat a step."""

import math

import pytest
import torch

from ratfast.optim import FusedAdam, FusedAdamW, FusedSGD

KINDS = [FusedAdam, FusedAdamW, FusedSGD]


def gradient(param, target, step):
    """Of a quadratic, with noise that is the same for every type."""
    noise = math.sin(1.7 * step) * torch.linspace(-1, 1, param.numel(), dtype=torch.float64)
    return (param.detach().double() - target) * torch.linspace(
        0.1, 2.0, param.numel(), dtype=torch.float64
    ) + noise


def by_formula(target, steps, limit, decay):
    """AdamW (arXiv 1711.05101) with AMSGrad, clipping, a moving average, and steps 500, 1500, ... skipped; float64."""
    lr, beta1, beta2, eps, weight_decay = 1e-2, 0.9, 0.99, 1e-8, 1e-2
    p = torch.zeros(len(target), dtype=torch.float64)
    m, v, largest, average = (torch.zeros_like(p) for _ in range(4))
    t = 0
    for step in range(steps):
        g = gradient(p, target, step)
        if step % 1000 == 500:
            continue
        t += 1
        g = g * min(1.0, limit / (g.norm().item() + 1e-6))
        p = p - lr * weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        largest = torch.maximum(largest, v)
        p = p - lr * (m / (1 - beta1**t)) / ((largest / (1 - beta2**t)).sqrt() + eps)
        average = decay * average + (1 - decay) * p
    return p, average, t


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 1e-3)]
)
def test_thousands_of_steps_against_the_formula(dtype, tolerance):
    """In bfloat16 with masters, which see the gradients of their own rounded copies."""
    steps, target = 4000, torch.linspace(-2.0, 2.0, 37, dtype=torch.float64)
    expected, average, count = by_formula(target, steps, 3.0, 0.99)
    param = torch.zeros(37, dtype=dtype, requires_grad=True)
    optimizer = FusedAdamW(
        [param],
        lr=1e-2,
        betas=(0.9, 0.99),
        amsgrad=True,
        max_grad_norm=3.0,
        ema_decay=0.99,
        master_weights=True,
        zero_grads=True,
    )
    param.grad_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    for step in range(steps):
        held = optimizer.state[param].get("master_param", param) if step else param
        param.grad = gradient(held, target, step).to(param.grad_dtype)
        if step % 1000 == 500:
            param.grad[step % 37] = math.inf
        optimizer.step()
    state = optimizer.state[param]
    found = state.get("master_param", param).detach().double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state["averaged_param"].double(), average, rtol=tolerance, atol=tolerance)
    assert state["step"].item() == count == 3996


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "extras", [{}, {"max_grad_norm": 1.0, "ema_decay": 0.9, "zero_grads": True}, {"swa": True}]
)
def test_replays_of_a_graph_are_steps(kind, extras, cuda):
    """Ten replays of one captured step, with a learning rate changed on the device, against ten eager steps."""
    options = {"momentum": 0.9} if kind is FusedSGD else {"capturable": True}
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        params = [torch.randn(shape, device=cuda, requires_grad=True) for shape in [(70, 3), (5,), (1025,)]]
        grads = [torch.randn_like(param) for param in params]
        rate = torch.tensor(1e-2, device=cuda)
        optimizer = kind(params, lr=rate, **options, **extras)
        for param in params:
            param.grad = torch.zeros_like(param)

        def step(params=params, grads=grads, optimizer=optimizer):
            for param, grad in zip(params, grads, strict=True):
                param.grad.copy_(grad)
            optimizer.step()

        step()
        graph = torch.cuda.CUDAGraph()
        if captured:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                step()
        for index in range(10):
            for number, grad in enumerate(grads):
                grad.copy_(torch.full_like(grad, math.cos(index + number)))
            rate.fill_(1e-2 / (index + 1))
            graph.replay() if captured else step()
        torch.cuda.synchronize()
        results.append([*params, *(optimizer.state[param].get("averaged_param", param) for param in params)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
