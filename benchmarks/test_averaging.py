"""Averaging N models in memory: this project on rows and on dicts, against what others do.

`python -m pytest benchmarks/test_averaging.py --benchmark-json=FILE` measures the CPU, and the GPU where
there is one. All contestants of a group work on the same N models and are checked against a sum in float64
first.

Environment:
    RATFAST_BENCH_MODELS: N, 4 by default; 20 is the paper's number.
    RATFAST_BENCH_NETWORK: a torchvision model that gives the shapes, resnet50 by default.
    RATFAST_BENCH_ROUNDS: how often each contestant runs, 5 by default, after one round to warm up.
    RATFAST_BENCH_DTYPE: float32 by default.
"""

import os

import pytest
import torch
import torchvision

import ratfast
from ratfast import native, ops
from ratfast.averaging.sections import sections
from ratfast.layout import Layout, TensorSpec

MODELS = int(os.environ.get("RATFAST_BENCH_MODELS", "4"))
NETWORK = os.environ.get("RATFAST_BENCH_NETWORK", "resnet50")
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "5"))
DTYPE = os.environ.get("RATFAST_BENCH_DTYPE", "float32")
SEVERAL = 8  # outputs of the contestant that makes many averages at once


class Models:
    """N random models with the shapes of a network's parameters, each a row and a dict of views of it."""

    def __init__(self, device):
        with torch.device("meta"):
            network = getattr(torchvision.models, NETWORK)()
        dtype = getattr(torch, DTYPE)
        specs = (TensorSpec(name, tuple(p.shape), DTYPE) for name, p in network.named_parameters())
        self.layout = Layout.pack(specs)
        (section,) = sections(self.layout)
        generator = torch.Generator(device).manual_seed(0)
        self.rows = []
        for _ in range(MODELS):
            row = torch.empty(section.numel, dtype=dtype, device=device)
            self.rows.append(row.uniform_(-0.1, 0.1, generator=generator))
        self.dicts = [self.views(row) for row in self.rows]
        self.out = torch.empty_like(self.rows[0])
        self.out_dict = self.views(self.out)
        self.expected = sum(row.double() for row in self.rows) / MODELS

    def several(self):
        """The rows of SEVERAL outputs, `out` the first."""
        if not hasattr(self, "_more"):
            self._more = [torch.empty_like(self.out) for _ in range(SEVERAL - 1)]
        return [self.out, *self._more]

    def views(self, row):
        pieces = row.split([entry.numel for entry in self.layout])
        return {entry.name: p.view(entry.shape) for entry, p in zip(self.layout, pieces, strict=True)}

    def flat(self, state):
        return torch.cat([state[entry.name].flatten() for entry in self.layout])


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def models(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Models(torch.device(request.param))


def copy(models):
    """The floor: every model read, and as much written, by the fastest thing there is."""
    for row in models.rows:
        models.out.copy_(row)


def ratfast_rows(models):
    weights = torch.full((1, MODELS), 1 / MODELS, dtype=torch.float64)
    ops.mix_([[models.out]], [[row] for row in models.rows], weights)
    return models.out


def ratfast_rows_8_outputs(models):
    """Eight soups in one pass; the first is the average."""
    weights = torch.full((SEVERAL, MODELS), 1 / MODELS, dtype=torch.float64)
    weights[1:] += torch.linspace(-1, 1, SEVERAL - 1, dtype=torch.float64)[:, None]
    ops.mix_([[row] for row in models.several()], [[row] for row in models.rows], weights)
    return models.out


def ratfast_dicts(models):
    return models.flat_of(ratfast.average(models.dicts))


def ratfast_dicts_in_place(models):
    ratfast.average(models.dicts, out=models.out_dict)
    return models.out


def official_running_mean(models):
    """The formula of ModelRatatouille's and DiWA's inference, parameter by parameter, model by model."""
    average = dict(models.dicts[0])
    for count, state in enumerate(models.dicts[1:], 1):
        for name, new in state.items():
            average[name] = (average[name] * count + new) / (1.0 + count)
    return models.flat_of(average)


def stack_mean(models):
    states = models.dicts
    return models.flat_of({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})


def foreach_lerp(models):
    """torch's running mean (`get_swa_multi_avg_fn`): one pass over the average for every model."""
    outputs = list(models.out_dict.values())
    torch._foreach_copy_(outputs, list(models.dicts[0].values()))
    for count, state in enumerate(models.dicts[1:], 1):
        torch._foreach_lerp_(outputs, list(state.values()), 1 / (count + 1))
    return models.out


CONTESTANTS = {
    "copy": copy,
    "ratfast-rows": ratfast_rows,
    "ratfast-rows-8-outputs": ratfast_rows_8_outputs,
    "ratfast-dicts": ratfast_dicts,
    "ratfast-dicts-in-place": ratfast_dicts_in_place,
    "official-running-mean": official_running_mean,
    "torch-stack-mean": stack_mean,
    "torch-foreach-lerp": foreach_lerp,
}


@pytest.mark.parametrize("name", CONTESTANTS)
def test_average(benchmark, models, name):
    function = CONTESTANTS[name]
    device = models.out.device

    models.flat_of = models.flat
    result = function(models)
    if result is not None:
        tolerance = 4 * torch.finfo(result.dtype).eps * 0.1 * MODELS
        torch.testing.assert_close(result.double(), models.expected, rtol=0, atol=tolerance)
    models.flat_of = lambda state: None  # the check's copy is not to be measured

    def run():
        function(models)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.group = f"average of {MODELS} x {NETWORK}, {DTYPE}, {device.type}"
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    row = models.out.nbytes
    outputs = SEVERAL if function is ratfast_rows_8_outputs else 1
    touched = row * (2 * MODELS if name == "copy" else MODELS + outputs)
    benchmark.extra_info.update(
        contestant=name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        native=list(native.status().loaded),
        cpu_capability=native.status().cpu_capability,
        threads=torch.get_num_threads(),
        bytes=touched,  # that must be read and written; what a contestant moves beyond that is its loss
    )
    if benchmark.stats:
        benchmark.extra_info["gigabytes_per_second"] = touched / benchmark.stats.stats.median / 1e9
