"""The host's time for a step: everything but the arithmetic, on as many parameters as ResNet-50 has, of four elements.

`python -m pytest benchmarks/test_optimizer_host.py` measures on the CPU what a GPU would wait for, with one thread.
"""

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.optim import FusedAdamW

PARAMETERS = 161
FUSED = {"max_grad_norm": 1.0, "ema_decay": 0.999, "zero_grads": True}
CONTESTANTS = {
    "ratfast-arena": lambda params: FusedAdamW(params),
    "ratfast-arena-everything": lambda params: FusedAdamW(params, **FUSED),
    "ratfast-list": lambda params: FusedAdamW(params),
    "torch-fused": lambda params: torch.optim.AdamW(params, fused=True),
    "torch-foreach": lambda params: torch.optim.AdamW(params, foreach=True),
}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_host_time_of_a_step(benchmark, name, one_thread):
    model = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(PARAMETERS)])
    if "arena" in name:
        Arena(model)
    for parameter in model:
        parameter.grad = torch.ones(4) if parameter.grad is None else parameter.grad.fill_(1.0)
    optimizer = CONTESTANTS[name](model.parameters())
    optimizer.step()
    benchmark.group = f"host time of an AdamW step, {PARAMETERS} parameters"
    benchmark.extra_info.update(contestant=name, parameters=PARAMETERS)
    benchmark.pedantic(optimizer.step, rounds=20, iterations=200)
