"""Averaging N models in memory: this project on rows and on dicts, against what others do.

`python -m pytest benchmarks/test_averaging.py --benchmark-json=FILE` measures the CPU, and the GPU where
there is one. All contestants of a group work on the same models and are checked against a sum in float64
first. Three kinds of groups, each for every number of models:

- one average, this project against every other way, and a plain copy as the floor;
- K averages of the same models with different weights, K = 1 and 8, against torch's matrix product;
- one average of float32 and of bfloat16 models.

Environment:
    RATFAST_BENCH_MODELS: the numbers N of models, 4 by default; "4,20" for the paper's number as well. A float32
        ResNet-50 takes 102 MB of memory; N + 11 of them exist at a time, 2 N + 2 for `torch.stack().mean()`.
    RATFAST_BENCH_NETWORK: a torchvision model that gives the shapes, resnet50 by default.
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 5 by default, after one round to warm up; on a GPU
        each time is the mean of 10 averages that are waited for together.
"""

import functools
import os
import re

import pytest
import torch
from bandwidth import synchronized_clock
from random_models import Models
from torch.optim.swa_utils import AveragedModel

import ratfast
from ratfast import native, ops
from ratfast.swa import get_swa_multi_avg_fn

NUMBERS = [int(number) for number in os.environ.get("RATFAST_BENCH_MODELS", "4").split(",")]
NETWORK = os.environ.get("RATFAST_BENCH_NETWORK", "resnet50")
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "5"))
AVERAGES_PER_ROUND = {"cpu": 1, "cuda": 10}
SPREAD = 0.1  # of the models' values around 0


@functools.lru_cache(maxsize=1)  # one at a time: they fill the memory of small machines
def models_of(kind, count, dtype):
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Models(NETWORK, count, dtype, torch.device(kind))


def uniform(models):
    return torch.full((1, len(models)), 1 / len(models), dtype=torch.float64)


# One average. A contestant is made outside the time, and returns what computes; that returns a row or a dict.


def copy(models):
    """The floor: every model read, and as much written, by the fastest thing there is."""

    def run():
        for row in models.rows:
            models.out.copy_(row)

    return run


def ratfast_rows(models):
    sources = [[row] for row in models.rows]

    def run():
        ops.mix_([[models.out]], sources, uniform(models))
        return models.out

    return run


def ratfast_dicts(models):
    return lambda: ratfast.average(models.dicts)


def ratfast_dicts_in_place(models):
    return lambda: ratfast.average(models.dicts, out=models.out_dict)


def averaged_model(models, **options):
    """`AveragedModel.update_parameters`, called for every model; buffers are none of its work here."""
    sources = models.modules()
    average = AveragedModel(models.module(models.views(torch.empty_like(models.out))), **options)

    def run():
        average.n_averaged.zero_()
        for source in sources:
            average.update_parameters(source)
        return dict(average.module.named_parameters())

    return run


def ratfast_averaged_model(models):
    return averaged_model(models, multi_avg_fn=get_swa_multi_avg_fn())


def torch_averaged_model(models):
    return averaged_model(models)


def official_running_mean(models):
    """The formula of ModelRatatouille's and DiWA's inference, parameter by parameter, model by model."""

    def run():
        average = dict(models.dicts[0])
        for count, state in enumerate(models.dicts[1:], 1):
            for name, new in state.items():
                average[name] = (average[name] * count + new) / (1.0 + count)
        return average

    return run


def soup_dicts(models):
    """The formula of model-soups: a new dict for every model, each weighted and added to the last."""

    def run():
        share = 1.0 / len(models)
        soup = {name: tensor * share for name, tensor in models.dicts[0].items()}
        for state in models.dicts[1:]:
            soup = {name: soup[name] + tensor * share for name, tensor in state.items()}
        return soup

    return run


def timm_loop(models):
    """The formula of timm's avg_checkpoints.py: sums in float64, rounded to float32 at the end."""

    def run():
        total = {name: tensor.double() for name, tensor in models.dicts[0].items()}
        for state in models.dicts[1:]:
            for name, tensor in state.items():
                total[name] += tensor.double()
        limit = torch.finfo(torch.float32)
        return {
            name: tensor.div_(len(models)).clamp(limit.min, limit.max).float()
            for name, tensor in total.items()
        }

    return run


def stack_mean(models):
    def run():
        return {
            name: torch.stack([state[name] for state in models.dicts]).mean(0) for name in models.dicts[0]
        }

    return run


def foreach_lerp(models):
    """torch's running mean (`get_swa_multi_avg_fn`): one pass over the average for every model."""
    outputs, lists = list(models.out_dict.values()), [list(state.values()) for state in models.dicts]

    def run():
        torch._foreach_copy_(outputs, lists[0])
        for count, tensors in enumerate(lists[1:], 1):
            torch._foreach_lerp_(outputs, tensors, 1 / (count + 1))
        return models.out

    return run


def foreach_add(models):
    outputs, lists = list(models.out_dict.values()), [list(state.values()) for state in models.dicts]

    def run():
        torch._foreach_copy_(outputs, lists[0])
        for tensors in lists[1:]:
            torch._foreach_add_(outputs, tensors)
        torch._foreach_mul_(outputs, 1 / len(models))
        return models.out

    return run


def matrix_product(models):
    """One row of weights times the matrix of models, which only exists where models are kept as rows."""
    return mixtures(models, uniform(models))["torch-matmul"]


CONTESTANTS = {
    "copy": copy,
    "ratfast-rows": ratfast_rows,
    "ratfast-dicts": ratfast_dicts,
    "ratfast-dicts-in-place": ratfast_dicts_in_place,
    "ratfast-averaged-model": ratfast_averaged_model,
    "official-running-mean": official_running_mean,
    "model-soups-dicts": soup_dicts,
    "timm-avg-checkpoints": timm_loop,
    "torch-averaged-model": torch_averaged_model,
    "torch-foreach-add": foreach_add,
    "torch-foreach-lerp": foreach_lerp,
    "torch-matmul": matrix_product,
    "torch-stack-mean": stack_mean,
}


def mixtures(models, weights):
    """What computes all rows of `weights`, (K, N) float64, at once; each returns (K, parameters)."""
    out = torch.empty(len(weights), models.slab.shape[1], dtype=models.slab.dtype, device=models.slab.device)
    sources = [[row] for row in models.rows]
    factors = weights.to(models.slab)

    def ratfast_rows():
        ops.mix_([[row] for row in out], sources, weights)
        return out

    return {"ratfast": ratfast_rows, "torch-matmul": lambda: torch.matmul(factors, models.slab, out=out)}


def check(models, result, weights):
    """Against float64: what rounding of float32 sums, and of the result, allows for."""
    if isinstance(result, dict):
        result = models.flat(result)
    epsilon = torch.finfo(torch.float32).eps
    for row, exact, w in zip(
        result.view(len(weights), -1), models.expected(weights), weights.abs().sum(1), strict=True
    ):
        tolerance = SPREAD * float(w) * (4 * epsilon * len(models) + torch.finfo(result.dtype).eps)
        torch.testing.assert_close(row.double(), exact, rtol=0, atol=tolerance)


def measure(benchmark, models, run, group, contestant, touched):
    """Times `run`, which must read and write `touched` bytes; what it moves beyond that is its loss."""
    kind = models.slab.device.type
    benchmark.group = f"{group}, {kind}"
    benchmark.pedantic(run, rounds=ROUNDS, iterations=AVERAGES_PER_ROUND[kind], warmup_rounds=1)
    benchmark.extra_info.update(
        contestant=contestant,
        device=torch.cuda.get_device_name() if kind == "cuda" else "cpu",
        native=list(native.status().loaded),
        cpu_capability=native.status().cpu_capability,
        threads=torch.get_num_threads(),
        bytes=touched,
    )
    if benchmark.stats:
        benchmark.extra_info["gigabytes_per_second"] = touched / benchmark.stats.stats.median / 1e9


# The parameters nearest to a test change last, so that models are made once for all contestants.
kinds = pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
numbers = pytest.mark.parametrize("count", NUMBERS)
timed = pytest.mark.benchmark(timer=synchronized_clock)


@timed
@pytest.mark.parametrize("name", CONTESTANTS)
@numbers
@kinds
def test_average(benchmark, kind, count, name):
    models = models_of(kind, count, torch.float32)
    run = CONTESTANTS[name](models)
    models.out.fill_(torch.nan)
    result = run()
    if name != "copy":
        check(models, result, uniform(models))
    del result
    touched = models.out.nbytes * (2 * count if name == "copy" else count + 1)
    measure(benchmark, models, run, f"average of {count} x {NETWORK}, float32", name, touched)


@timed
@pytest.mark.parametrize("averages", [1, 8])
@pytest.mark.parametrize("name", ["ratfast", "torch-matmul"])
@numbers
@kinds
def test_several_averages(benchmark, kind, count, averages, name):
    models = models_of(kind, count, torch.float32)
    weights = torch.rand(averages, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = mixtures(models, weights)[name]
    check(models, run(), weights)
    group = f"averages of {count} x {NETWORK} by their number, float32"
    touched = models.out.nbytes * (count + averages)
    measure(benchmark, models, run, group, f"{name}-{averages}", touched)


@timed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@numbers
@kinds
def test_element_types(benchmark, kind, count, dtype):
    models = models_of(kind, count, dtype)
    run = ratfast_rows(models)
    check(models, run(), uniform(models))
    group = f"average of {count} x {NETWORK} by element type"
    name = re.sub(r"^torch\.", "ratfast-rows-", str(dtype))
    measure(benchmark, models, run, group, name, models.out.nbytes * (count + 1))
