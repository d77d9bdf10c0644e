"""The host's time for a step: everything but the arithmetic, on as many parameters as ResNet-50 has, of four elements.

`python -m pytest benchmarks/test_optimizer_host.py` measures on the CPU what a GPU would wait for, with one thread and
as many tensors as ResNet-50 and ViT-B/16 have. Gradients come from a loss that is alive during the step, as in a
training loop: its graph holds the parameters, which makes it cheaper to ask where they are.
"""

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.optim import FusedAdamW

PARAMETERS = {"resnet50": 161, "vit_b_16": 152}
FUSED = {"max_grad_norm": 1.0, "ema_decay": 0.999, "zero_grads": True}
CONTESTANTS = {
    "ratfast-arena": lambda params: FusedAdamW(params),
    "ratfast-arena-everything": lambda params: FusedAdamW(params, **FUSED),
    "ratfast-list": lambda params: FusedAdamW(params),
    "ratfast-list-everything": lambda params: FusedAdamW(params, **FUSED),
    "torch-fused": lambda params: torch.optim.AdamW(params, fused=True),
    "torch-foreach": lambda params: torch.optim.AdamW(params, foreach=True),
}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("network", PARAMETERS)
@pytest.mark.parametrize("name", CONTESTANTS)
def test_host_time_of_a_step(benchmark, name, network, one_thread):
    count = PARAMETERS[network]
    model = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(count)])
    if "arena" in name:
        Arena(model)
    loss = torch.stack([(parameter * parameter).sum() for parameter in model]).sum()
    loss.backward()
    optimizer = CONTESTANTS[name](model.parameters())
    optimizer.step()
    optimizer.step()
    benchmark.group = f"host time of an AdamW step, {count} parameters"
    benchmark.extra_info.update(contestant=name, parameters=count)
    benchmark.pedantic(optimizer.step, rounds=20, iterations=200)
    assert loss.grad_fn is not None
