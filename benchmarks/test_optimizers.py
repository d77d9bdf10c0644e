"""AdamW over the parameters of ResNet-50 and ViT-B/16: this project on an arena and on a list, against torch.

`python -m pytest benchmarks/test_optimizers.py --benchmark-json=FILE` measures the CPU, and the GPU where
there is one. The floor of a step is the memory it must touch, 28 bytes per float32 parameter (parameter,
gradient and two moments read; parameter and moments written), at the bandwidth that a plain copy reaches in
the same run. On a CPU a copy reads what it overwrites as well, uncounted, so a step can come out above that
floor's bandwidth there.

Environment:
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 8 by default; on a GPU each time is the mean of
        20 steps that are waited for together.
"""

import functools
import os

import pytest
import torch
import torchvision
from bandwidth import copy_bandwidth, synchronized_clock

from ratfast import native
from ratfast.arena import Arena
from ratfast.optim import FusedAdamW

ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "8"))
STEPS_PER_ROUND = {"cpu": 1, "cuda": 20}
BYTES_PER_PARAMETER = 28
MODELS = ["resnet50", "vit_b_16"]
CONTESTANTS = ["ratfast-arena", "ratfast-list", "torch-fused", "torch-foreach"]
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def device_of(kind):
    if kind == "cuda" and not torch.cuda.is_available():
        if os.environ.get("RATFAST_REQUIRE_CUDA") == "1":
            pytest.fail("no CUDA device, and RATFAST_REQUIRE_CUDA=1")
        pytest.skip("no CUDA device")
    return torch.device(kind)


@functools.cache
def measured_bandwidth(device):
    return copy_bandwidth(device)


def contestant(name, architecture, device):
    """A module with random parameters and gradients, and its optimizer."""
    with torch.device("meta"):
        module = getattr(torchvision.models, architecture)()
    module.to_empty(device=device)
    torch.manual_seed(0)
    arena = Arena(module) if name == "ratfast-arena" else None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.1, 0.1)
            if arena is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.uniform_(-0.01, 0.01)
    if name.startswith("ratfast"):
        return module, arena, FusedAdamW(module.parameters(), **OPTIONS)
    switch = {"fused": True} if name == "torch-fused" else {"foreach": True}
    return module, arena, torch.optim.AdamW(module.parameters(), **OPTIONS, **switch)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name != "torch-fused"])
def test_all_contestants_compute_the_same(name, kind):
    device = device_of(kind)
    module, _, optimizer = contestant(name, "resnet50", device)
    peer, _, other = contestant("torch-fused", "resnet50", device)
    with torch.no_grad():
        for mine, its in zip(module.parameters(), peer.parameters(), strict=True):
            its.copy_(mine)
            its.grad.copy_(mine.grad)
    for _ in range(3):
        optimizer.step()
        other.step()
    for mine, its in zip(module.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


@pytest.mark.benchmark(timer=synchronized_clock)
@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("name", CONTESTANTS)
def test_adamw_step(benchmark, name, architecture, kind):
    device = device_of(kind)
    bandwidth = measured_bandwidth(device)
    module, arena, optimizer = contestant(name, architecture, device)
    benchmark.group = f"AdamW step, {architecture}, {kind}"
    benchmark.pedantic(optimizer.step, rounds=ROUNDS, iterations=STEPS_PER_ROUND[kind], warmup_rounds=2)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    floor = parameters * BYTES_PER_PARAMETER / bandwidth
    benchmark.extra_info.update(
        contestant=name,
        device=torch.cuda.get_device_name(device) if kind == "cuda" else "cpu",
        native=list(native.status().loaded),
        threads=torch.get_num_threads(),
        parameters=parameters,
        tensors=len(list(module.parameters())),
        copy_bytes_per_second=bandwidth,
        floor_seconds=floor,
        share_of_copy_bandwidth=floor / seconds if seconds else None,
    )
    assert arena is None or arena.is_intact()
