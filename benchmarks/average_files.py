"""Averages of checkpoint files, from the shell to the file written: this project against others' programs.

`python benchmarks/record.py benchmarks/average_files.py` makes N random ResNet-50s (batch-norm buffers included) as
safetensors and as torch.save writes them, and runs every contestant on them, in turns, each a process of its own;
the files are in the page cache. Results are compared with a sum in float64, floating tensors only, because others
treat `num_batches_tracked` in ways of their own. This project hashes every input and waits until the output is on
the disk, which none of the others does; timm's script hashes its output.

Arguments: `--json FILE` (for record.py), `--only PART` (contestants whose names contain it).

Environment:
    RATFAST_BENCH_MODELS: N, 20 by default.
    RATFAST_BENCH_NETWORK: a torchvision model that gives the shapes, resnet50 by default.
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 5 by default.
    RATFAST_BENCH_FOLDER: where files are written, by default a temporary folder; two sets of inputs of 102 MB per
        model. Inputs that are there already are used again, and stay.
    RATFAST_BENCH_MERGEKIT: a virtual environment in which mergekit is installed.
    RATFAST_BENCH_TIMM, RATFAST_BENCH_TIMM_SCRIPT: a virtual environment in which timm is installed, and
        avg_checkpoints.py of timm's repository, which timm's package does not contain.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from processes import RATFAST, Contestant, compare, report
from random_models import write_models
from torch import Tensor

MODELS = int(os.environ.get("RATFAST_BENCH_MODELS", "20"))
NETWORK = os.environ.get("RATFAST_BENCH_NETWORK", "resnet50")
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "5"))


def load(path: Path) -> dict[str, Tensor]:
    """A state dict of either kind of file."""
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def against_float64(inputs: list[Path]) -> Callable[[Path], None]:
    """A check of an output: the floating tensors' means, to the rounding of float32 sums."""
    expected: dict[str, Tensor] = {}
    for path in inputs:
        for name, tensor in load(path).items():
            if tensor.is_floating_point():
                expected[name] = expected.get(name, 0) + tensor.double() / len(inputs)

    def check(output: Path) -> None:
        found = load(output)
        for name, exact in expected.items():
            tolerance = (
                4 * torch.finfo(torch.float32).eps * len(inputs) * float(exact.abs().max().clamp(min=0.1))
            )
            torch.testing.assert_close(
                found[name].double(),
                exact,
                rtol=0,
                atol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )

    return check


def contestants(folder: Path) -> list[Contestant]:
    """This project and all that is installed of the others."""
    safe, pickled = write_models(folder, NETWORK, MODELS)
    check = against_float64(safe)
    found = []

    def add(name: str, command: list[str], output: Path) -> None:
        found.append(Contestant(name, command, output, check))

    out_safe, out_pickled = folder / "out.safetensors", folder / "out.pth"
    ours = [*RATFAST, "average", "--buffers", "average", "-o", str(out_safe)]
    add("ratfast-safetensors", [*ours, *map(str, safe)], out_safe)
    add("ratfast-pth", [*ours, *map(str, pickled)], out_safe)
    if environment := os.environ.get("RATFAST_BENCH_MERGEKIT"):
        recipe, merged = folder / "mergekit.yaml", folder / "merged"
        models = "".join(f"  - model: {path}\n    parameters:\n      weight: 1.0\n" for path in safe)
        recipe.write_text(
            f"merge_method: linear\nmodels:\n{models}parameters:\n  normalize: true\ndtype: float32\n"
        )
        command = [f"{environment}/bin/mergekit-pytorch", "--quiet", str(recipe), str(merged)]
        add("mergekit-pytorch", command, merged / "model.safetensors")
    if (environment := os.environ.get("RATFAST_BENCH_TIMM")) and (
        script := os.environ.get("RATFAST_BENCH_TIMM_SCRIPT")
    ):
        timm = [f"{environment}/bin/python", script, "--input", str(safe[0].parent), "--no-sort"]
        ways = ["--filter", "*.safetensors", "--safetensors"], ["--filter", "*.pth"]
        add("timm-script-safetensors", [*timm, *ways[0], "--output", str(out_safe)], out_safe)
        add("timm-script-pth", [*timm, *ways[1], "--output", str(out_pickled)], out_pickled)
    peers = [sys.executable, str(Path(__file__).with_name("file_peers.py"))]
    for way in ("official-running-mean", "model-soups-dicts", "timm-loop"):
        add(f"{way}-pth", [*peers, way, str(out_pickled), *map(str, pickled)], out_pickled)
    for way in ("torch-stack-mean", "torch-foreach-lerp"):
        add(f"{way}-safetensors", [*peers, way, str(out_safe), *map(str, safe)], out_safe)
    return found


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("RATFAST_BENCH_FOLDER", temporary))
        taking_part = [one for one in contestants(folder) if arguments.only in one.name]
        group = f"average of {MODELS} x {NETWORK} files, whole process"
        report(compare(taking_part, ROUNDS, group), arguments.json)


if __name__ == "__main__":
    main()
