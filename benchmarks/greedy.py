"""The weight work of a greedy soup of N checkpoint files: this project against the official script's way.

`python benchmarks/record.py benchmarks/greedy.py` selects among N random ResNet-50s with a given evaluation, which
takes no time and scores every candidate better than the last, so that all are accepted: the most work there can be.
Both first score every model alone. The official way (ModelRatatouille's and DiWA's inference) then loads every
accepted checkpoint again for every candidate, and averages them anew: N + N (N + 1) / 2 loads. Its building of a
network for every checkpoint is left out. Both keep the first member's batch-norm buffers, and end with the same
average, which is compared with a sum in float64.

`extra.models_read` counts how often a checkpoint was read, loaded or, where mapped, summed.

Arguments: `--json FILE` (for record.py).

Environment:
    RATFAST_BENCH_MODELS: N, 20 by default.
    RATFAST_BENCH_NETWORK: a torchvision model that gives the shapes, resnet50 by default.
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 3 by default.
    RATFAST_BENCH_FOLDER: as for average_files.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from processes import report
from random_models import on_meta, write_models
from torch import Tensor

import ratfast
from ratfast import ops

MODELS = int(os.environ.get("RATFAST_BENCH_MODELS", "20"))
NETWORK = os.environ.get("RATFAST_BENCH_NETWORK", "resnet50")
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "3"))

PARAMETERS = [name for name, _ in on_meta(NETWORK).named_parameters()]

Evaluate = Callable[[dict[str, Tensor]], float]
State = dict[str, Tensor]


def official_way(paths: list[Path], evaluate: Evaluate, load: Callable[[Path], State]) -> State:
    """Greedy selection as the official script does it; keeps ties, as it does."""
    alone = {path: evaluate(load(path)) for path in paths}
    best, members, soup = -float("inf"), [], {}
    for candidate in sorted(paths, key=alone.__getitem__, reverse=True):
        average: State = {}
        for count, path in enumerate([*members, candidate]):
            state = load(path)
            if not count:
                average = dict(state)
                continue
            for name in PARAMETERS:
                average[name] = (average[name] * count + state[name]) / (1.0 + count)
        score = evaluate(average)
        if score >= best:
            best, soup = score, average
            members.append(candidate)
    return soup


def greedy_way(paths: list[Path], evaluate: Evaluate) -> State:
    """This project's, from opening the files to the selected average."""
    pool = ratfast.Pool.open(paths, buffers="keep")
    return ratfast.greedy_soup(pool, evaluate).average()


def ascending() -> Evaluate:
    """An evaluation by which every candidate is better than the last."""
    numbers = itertools.count()
    return lambda state: float(next(numbers))


def official_reads(paths: list[Path]) -> tuple[State, int]:
    """The official way's result, and how many checkpoints it loaded."""
    load = mock.Mock(side_effect=torch.load)
    return official_way(paths, ascending(), load), load.call_count


def greedy_reads(paths: list[Path]) -> tuple[State, int]:
    """This project's result, and how many checkpoints were summands of its sums.

    What is read was mapped: sums whose memory lies in one of the pool's rows read a checkpoint.
    """
    pool = ratfast.Pool.open(paths, buffers="keep")
    rows = {section.data_ptr() for index in range(len(pool)) for section in pool.summands(index)}
    reads = 0
    mix = ops.mix_

    def counting(outputs, sources, *arguments, **options):
        nonlocal reads
        reads += sum(bool(source) and source[0].data_ptr() in rows for source in sources)
        return mix(outputs, sources, *arguments, **options)

    with mock.patch.object(ops, "mix_", counting):
        soup = ratfast.greedy_soup(pool, ascending()).average()
    return soup, reads


def check(soup: State, paths: list[Path]) -> None:
    """Against the mean of all models in float64."""
    expected: State = {}
    for path in paths:
        state = torch.load(path)
        for name in PARAMETERS:
            expected[name] = expected.get(name, 0) + state[name].double() / len(paths)
    for name, exact in expected.items():
        tolerance = 8 * torch.finfo(torch.float32).eps * len(paths) * float(exact.abs().max().clamp(min=0.1))
        torch.testing.assert_close(soup[name].double(), exact, rtol=0, atol=tolerance)


def measure(folder: Path, json_path: str | None) -> None:
    """Checks both ways and counts their reads, then times them in turns."""
    safe, pickled = write_models(folder, NETWORK, MODELS)
    ways = {
        "ratfast-greedy": (greedy_reads, lambda: greedy_way(safe, ascending()), safe),
        "official-greedy": (
            official_reads,
            lambda: official_way(pickled, ascending(), torch.load),
            pickled,
        ),
    }
    results = {}
    for name, (reads_of, _, paths) in ways.items():
        soup, reads = reads_of(paths)
        check(soup, pickled)
        results[name] = {
            "group": f"weight work of a greedy soup of {MODELS} x {NETWORK} files",
            "contestant": name,
            "seconds": [],
            "extra": {"models_read": reads, "threads": torch.get_num_threads()},
        }
    for _ in range(ROUNDS):
        for name, (_, way, _) in ways.items():
            start = time.perf_counter()
            way()
            results[name]["seconds"].append(time.perf_counter() - start)
    report(list(results.values()), json_path)


@torch.no_grad()
def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(os.environ.get("RATFAST_BENCH_FOLDER", temporary)), arguments.json)


if __name__ == "__main__":
    main()
