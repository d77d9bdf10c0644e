"""One training as a whole process: this project against the official code, and what each of its measures is worth.

`python benchmarks/record.py benchmarks/trainer.py` fine-tunes a ResNet-18 on JPEG files of real photographs, 227x227
pixels as PACS has, four domains of which one is held out: the same images, batch size, number of updates and
evaluations for all, in float32 on the CPU. An evaluation comes after as many updates as see each image about once, as
in PACS.

- `official-W-workers`: scripts/train.py of a checkout of facebookresearch/ModelRatatouille, with W worker processes
  for each of its loaders (8 in the release). Replaced from outside: the weights that it downloads, the length, the
  interval and the batch size;
- `ratfast`: the row `vanilla` of one run, everything else as by default; with its training cache, `ratfast-cache`; in
  bfloat16, `ratfast-bfloat16`, which is other arithmetic, and faster where the processor has units for it (AMX);
- `ratfast-without-*`: `ratfast` less one of its measures.

Seconds are from the start of the process to its end, imports included; contestants take turns. `extra` has memory,
processes and threads at their peak, looked at once a second meanwhile.

Arguments: `--json FILE` (for record.py).

Environment:
    RATFAST_BENCH_RATATOUILLE: the checkout; without it the official code takes no part.
    RATFAST_BENCH_WORKERS: W, 1,8 by default.
    RATFAST_BENCH_STEPS, RATFAST_BENCH_INTERVAL: updates (21), and updates between evaluations (10).
    RATFAST_BENCH_IMAGES, RATFAST_BENCH_BATCH: images (240), and images of each of three domains in a batch (8).
    RATFAST_BENCH_NETWORK: resnet18 by default, or resnet50.
    RATFAST_BENCH_ROUNDS: how often each runs, 1 by default.
    RATFAST_BENCH_ONLY: names of the contestants that take part, by default all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from processes import report, run

STEPS = int(os.environ.get("RATFAST_BENCH_STEPS", "21"))
INTERVAL = int(os.environ.get("RATFAST_BENCH_INTERVAL", "10"))
IMAGES = int(os.environ.get("RATFAST_BENCH_IMAGES", "240"))
BATCH = int(os.environ.get("RATFAST_BENCH_BATCH", "8"))
NETWORK = os.environ.get("RATFAST_BENCH_NETWORK", "resnet18")
WORKERS = os.environ.get("RATFAST_BENCH_WORKERS", "1,8").split(",")
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "1"))
RATATOUILLE = os.environ.get("RATFAST_BENCH_RATATOUILLE")
TEST_ENV, DOMAINS = 3, 4


def official(folder: Path, output: Path, workers: int) -> None:
    """Runs the official script on `folder/PACS`."""
    sys.path.insert(0, str(RATATOUILLE))
    import torch
    import torchvision
    from domainbed import datasets, hparams_registry
    from domainbed.scripts import train

    def pretrained(**_: object) -> torch.nn.Module:
        network = make()
        network.load_state_dict(torch.load(folder / "weights.pth"))
        return network

    make = getattr(torchvision.models, NETWORK)
    setattr(torchvision.models, NETWORK, pretrained)
    datasets.PACS.N_STEPS, datasets.PACS.CHECKPOINT_FREQ = STEPS, INTERVAL
    datasets.PACS.N_WORKERS = workers
    draw = hparams_registry.default_hparams
    hparams_registry.default_hparams = lambda *arguments: {
        **draw(*arguments),
        "batch_size": BATCH,
        "resnet18": NETWORK == "resnet18",
    }
    arguments = {"dataset": "PACS", "test_envs": TEST_ENV, "data_dir": folder, "output_dir": output}
    train.main(
        train.parse_args([str(part) for key, value in arguments.items() for part in (f"--{key}", value)])
    )


def ratfast(folder: Path, output: Path, **changes: object) -> None:
    """Runs the recipe; `changes` are of its keys, `section_key`."""
    from ratfast import config, train

    values: dict[str, dict[str, object]] = {
        "data": {"dir": str(folder), "target": "PACS", "test_env": TEST_ENV},
        "model": {"backbone": NETWORK, "weights": str(folder / "weights.pth")},
        "train": {
            "rows": ["vanilla"],
            "runs": 1,
            "steps": STEPS,
            "eval_every": INTERVAL,
            "batch_size": BATCH,
            "device": "cpu",
        },
        "output": {"dir": str(output)},
    }
    for key, value in changes.items():
        section, _, name = key.partition("_")
        values.setdefault(section, {})[name] = value
    train.run(config.from_dict(values))


def without_allocator(folder: Path, output: Path) -> None:
    """Freed memory goes back to the kernel, as glibc has it."""
    from ratfast.train import host

    with mock.patch.object(host, "prepare"):
        ratfast(folder, output)


def without_channels_last(folder: Path, output: Path) -> None:
    """Weights and images are NCHW."""
    import torch

    from ratfast.models.classifier import Featurizer

    forward = Featurizer.forward
    with (
        mock.patch.object(torch, "channels_last", torch.contiguous_format),
        mock.patch.object(Featurizer, "forward", lambda self, images: forward(self, images.contiguous())),
    ):
        ratfast(folder, output)


def without_folding(folder: Path, output: Path) -> None:
    """Normalisation is a pass of its own, in evaluations too."""
    from ratfast.models.classifier import Featurizer

    with mock.patch.object(Featurizer, "pairs", []):
        ratfast(folder, output, train_fold_batch_norm="off")


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "ratfast": ratfast,
    "ratfast-bfloat16": lambda *paths: ratfast(*paths, train_precision="bfloat16"),
    "ratfast-cache": lambda *paths: ratfast(*paths, data_train_cache_side=256),
    "ratfast-without-folding": without_folding,
    "ratfast-without-selection-only": lambda *paths: ratfast(*paths, protocol_evaluated="all"),
    "ratfast-without-allocator": without_allocator,
    "ratfast-without-channels-last": without_channels_last,
}
if RATATOUILLE:
    for count in WORKERS:
        WAYS[f"official-{count}-workers"] = lambda *paths, count=count: official(*paths, int(count))


def check(name: str, output: Path) -> None:
    """That it trained to the end, evaluated as often as asked, and that the loss is a number."""
    place = output if name.startswith("official") else output / "vanilla" / "trial0-run00"
    rows = [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()]
    steps = [step for step in range(STEPS) if step % INTERVAL == 0 or step == STEPS - 1]
    assert [row["step"] for row in rows] == steps, rows
    assert all(0 < row["loss"] < 10 for row in rows), rows


def measure(folder: Path) -> list[dict[str, Any]]:
    """Runs the contestants in turns."""
    chosen = os.environ.get("RATFAST_BENCH_ONLY", ",".join(WAYS)).split(",")
    group = f"{NETWORK}, {STEPS} updates of {3 * BATCH} images at 224, evaluated every {INTERVAL}"
    results = {name: {"group": group, "contestant": name, "seconds": [], "extra": {}} for name in chosen}
    for _ in range(ROUNDS):
        for name in chosen:
            output = folder / "outputs" / name
            command = [sys.executable, __file__, "--way", name, str(folder), str(output)]
            found = run(command, sampling=1.0)
            check(name, output)
            shutil.rmtree(output)
            results[name]["seconds"].append(found.pop("seconds"))
            results[name]["extra"] = found
            print(f"{name}: {results[name]['seconds'][-1]:.1f} s", file=sys.stderr)
    return list(results.values())


def main() -> None:
    """Measures, or is one of the processes that are measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        name, folder, output = arguments.way
        WAYS[name](Path(folder), Path(output))
        return

    import torch
    import torchvision
    from photographs import write_dataset

    with tempfile.TemporaryDirectory() as temporary:
        write_dataset(Path(temporary) / "PACS", 227, 227, IMAGES, DOMAINS)
        torch.manual_seed(0)
        torch.save(getattr(torchvision.models, NETWORK)().state_dict(), Path(temporary) / "weights.pth")
        report(measure(Path(temporary)), arguments.json)


if __name__ == "__main__":
    main()
