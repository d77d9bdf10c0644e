"""Optimizer steps over the parameters of ResNet-50 and ViT-B/16: this project on an arena and on a list, against
torch and, on a GPU, apex.

`python -m pytest benchmarks/test_optimizers.py --benchmark-json=FILE` measures the CPU, and the GPU where
there is one (with ViT-L/16). Three steps are measured:

- `adamw`: AdamW. 28 bytes per float32 parameter: parameter, gradient and two moments read; all but the gradient
  written.
- `sgd`: with momentum and weight decay. 20 bytes: parameter, gradient and buffer read, all but the gradient written.
- `everything`: gradients unscaled and checked, clipped to a global norm, an AdamW step, a moving average of the
  weights. 40 bytes here: the gradients once for their norm, then a step with the average read and written. torch's
  four functions move 60: 8 to unscale, 12 to clip, 28 for the step, 12 for the average.

Floors on an H100, whose plain copy moves 2.6 to 3.0 TB/s, for ViT-L/16 (304.3 million parameters, float32); no step
can take less, and the goal is 1.1 times as long at most (`share_of_copy_bandwidth` in `extra` at least 0.9):

    adamw        8.52 GB   2.84 to 3.28 ms   one launch
    sgd          6.09 GB   2.03 to 2.34 ms   one launch
    everything  12.17 GB   4.06 to 4.68 ms   two launches; torch's four functions 18.26 GB, 6.09 to 7.02 ms

The floor of a step is that memory at the bandwidth that a plain copy reaches in the same run. On a CPU a copy reads
what it overwrites as well, uncounted, so a step can come out above that floor's bandwidth there.

Environment:
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 8 by default; on a GPU each time is the mean of
        20 steps that are waited for together.
"""

import functools
import gc
import os
import time

import pytest
import torch
import torchvision
from bandwidth import copy_bandwidth, device_of, synchronized_clock

from ratfast import native
from ratfast.arena import Arena
from ratfast.optim import FusedAdamW, FusedSGD

try:
    from apex.optimizers import FusedAdam as ApexAdam
except ImportError:
    ApexAdam = None

ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "8"))
STEPS_PER_ROUND = {"cpu": 1, "cuda": 20}
BYTES_PER_PARAMETER = {"adamw": 28, "sgd": 20, "everything": 40}
MODELS = {"cpu": ["resnet50", "vit_b_16"], "cuda": ["resnet50", "vit_b_16", "vit_l_16"]}
CONTESTANTS = {
    "adamw": ["ratfast-arena", "ratfast-list", "torch-fused", "torch-foreach", "apex"],
    "sgd": ["ratfast-arena", "ratfast-list", "torch-fused", "torch-foreach"],
    "everything": ["ratfast-arena", "ratfast-list", "torch-fused", "torch-foreach"],
}
TITLES = {"adamw": "AdamW step", "sgd": "SGD step", "everything": "AdamW step, unscaling, clipping, EMA"}
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
MAX_NORM, DECAY = 1.0, 0.999
CASES = [
    pytest.param(kind, work, architecture, name, marks=[pytest.mark.cuda] if kind == "cuda" else [])
    for kind, architectures in MODELS.items()
    for work, names in CONTESTANTS.items()
    for architecture in architectures
    for name in names
]


@functools.cache
def measured_bandwidth(device):
    return copy_bandwidth(device)


class Contestant:
    """A module with random parameters and gradients, and a step of one kind over them."""

    def __init__(self, name, work, architecture, device):
        if name == "apex" and (ApexAdam is None or device.type != "cuda"):
            pytest.skip("apex's FusedAdam is not installed, or there is no CUDA device")
        with torch.device("meta"):
            module = getattr(torchvision.models, architecture)()
        module.to_empty(device=device)
        torch.manual_seed(0)
        self.module = module
        self.arena = Arena(module) if name == "ratfast-arena" else None
        self.params = list(module.parameters())
        with torch.no_grad():
            for parameter in self.params:
                parameter.uniform_(-0.1, 0.1)
                if self.arena is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.uniform_(-0.01, 0.01)
        # A scale of 1, so that gradients that are unscaled again and again stay what they are.
        self.scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        self.step = self.ratfast(work) if name.startswith("ratfast") else self.peer(name, work)

    def ratfast(self, work):
        if work == "sgd":
            return FusedSGD(self.params, **SGD).step
        if work == "adamw":
            return FusedAdamW(self.params, **ADAMW).step
        self.optimizer = FusedAdamW(self.params, **ADAMW, max_grad_norm=MAX_NORM, ema_decay=DECAY)
        self.optimizer.grad_scale = self.scale
        return self.optimizer.step

    def peer(self, name, work):
        if name == "apex":
            return ApexAdam(self.params, **ADAMW, adam_w_mode=True).step
        switch = {"fused": True} if name == "torch-fused" else {"foreach": True}
        if work == "sgd":
            return torch.optim.SGD(self.params, **SGD, **switch).step
        optimizer = torch.optim.AdamW(self.params, **ADAMW, **switch)
        if work == "adamw":
            return optimizer.step
        grads = [parameter.grad for parameter in self.params]
        weights = [parameter.detach() for parameter in self.params]
        self.averages = [weight.clone() for weight in weights]

        def step():
            torch._amp_foreach_non_finite_check_and_unscale_(grads, self.found_inf, self.scale)
            torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM, foreach=True)
            optimizer.step()
            torch._foreach_lerp_(self.averages, weights, 1 - DECAY)

        return step

    def averaged(self):
        """The averages of the weights, by parameter."""
        if hasattr(self, "averages"):
            return self.averages
        state = self.optimizer.averaged_state_dict(self.module)
        return [state[name] for name, _ in self.module.named_parameters()]


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(
    ("work", "name"),
    [(work, name) for work, names in CONTESTANTS.items() for name in names if name != "torch-fused"],
)
def test_all_contestants_compute_the_same(work, name, kind):
    device = device_of(kind)
    one = Contestant(name, work, "resnet50", device)
    other = Contestant("torch-fused", work, "resnet50", device)
    with torch.no_grad():
        for mine, its in zip(one.params, other.params, strict=True):
            its.copy_(mine)
            its.grad.copy_(mine.grad)
        for average, its in zip(getattr(other, "averages", ()), other.params, strict=False):
            average.copy_(its)
        for average, its in zip(getattr(one, "averages", ()), one.params, strict=False):
            average.copy_(its)
    for _ in range(3):
        one.step()
        other.step()
    for mine, its in zip(one.params, other.params, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    if work == "everything":
        for mine, its in zip(one.averaged(), other.averaged(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def on_the_host(step):
    """Seconds of the host for one step on a GPU, whose queue never is full, and the kernels that one launches."""
    step()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [
        event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return {"host_seconds": sorted(seconds)[len(seconds) // 2], "launches": len(kernels)}


@pytest.mark.benchmark(timer=synchronized_clock)
@pytest.mark.parametrize(("kind", "work", "architecture", "name"), CASES)
def test_step(benchmark, kind, work, architecture, name):
    device = device_of(kind)
    bandwidth = measured_bandwidth(device)
    contestant = Contestant(name, work, architecture, device)
    benchmark.group = f"{TITLES[work]}, {architecture}, {kind}"
    gc.collect()
    benchmark.pedantic(contestant.step, rounds=ROUNDS, iterations=STEPS_PER_ROUND[kind], warmup_rounds=2)
    parameters = sum(parameter.numel() for parameter in contestant.params)
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    floor = parameters * BYTES_PER_PARAMETER[work] / bandwidth
    benchmark.extra_info.update(
        contestant=name,
        device=torch.cuda.get_device_name(device) if kind == "cuda" else "cpu",
        native=list(native.status().loaded),
        threads=torch.get_num_threads(),
        parameters=parameters,
        tensors=len(contestant.params),
        copy_bytes_per_second=bandwidth,
        floor_seconds=floor,
        share_of_copy_bandwidth=floor / seconds if seconds else None,
        **(on_the_host(contestant.step) if kind == "cuda" else {}),
    )
    assert contestant.arena is None or contestant.arena.is_intact()
