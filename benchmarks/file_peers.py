"""Others' ways to average checkpoint files, as programs: `python benchmarks/file_peers.py WAY OUTPUT INPUT...`.

Each is the published formula, written for this comparison, with nothing around it: no network is built, no data are
opened. What needs all models at once loads all of them; the others load one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor

State = dict[str, Tensor]


def load(path: str) -> State:
    """A state dict of either kind of file."""
    return safetensors.torch.load_file(path) if path.endswith(".safetensors") else torch.load(path)


def save(state: State, path: str) -> None:
    """Writes as the file's name says."""
    if path.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


def official_running_mean(paths: list[str]) -> State:
    """ModelRatatouille's and DiWA's inference: `(average * n + new) / (1 + n)`."""
    average: State = {}
    for count, path in enumerate(paths):
        for name, new in load(path).items():
            average[name] = (average[name] * count + new) / (1.0 + count) if count else new
    return average


def model_soups_dicts(paths: list[str]) -> State:
    """model-soups' uniform soup: a new dict for every model, each weighted and added to the last."""
    share = 1.0 / len(paths)
    soup: State = {}
    for path in paths:
        state = load(path)
        soup = {name: soup[name] + new * share if soup else new * share for name, new in state.items()}
    return soup


def timm_loop(paths: list[str]) -> State:
    """timm's avg_checkpoints.py: sums in float64, rounded to float32 at the end."""
    total: State = {}
    for path in paths:
        for name, new in load(path).items():
            if name in total:
                total[name] += new.double()
            else:
                total[name] = new.double()
    limit = torch.finfo(torch.float32)
    return {name: t.div_(len(paths)).clamp(limit.min, limit.max).float() for name, t in total.items()}


def torch_stack_mean(paths: list[str]) -> State:
    """All models in memory, each tensor stacked."""
    states = [load(path) for path in paths]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }


def torch_foreach_lerp(paths: list[str]) -> State:
    """torch's running mean over lists of tensors, one model after the other."""
    average = load(paths[0])
    floating = [name for name, tensor in average.items() if tensor.is_floating_point()]
    outputs = [average[name] for name in floating]
    for count, path in enumerate(paths[1:], 1):
        state = load(path)
        torch._foreach_lerp_(outputs, [state[name] for name in floating], 1 / (count + 1))
    return average


WAYS: dict[str, Callable[[list[str]], State]] = {
    "official-running-mean": official_running_mean,
    "model-soups-dicts": model_soups_dicts,
    "timm-loop": timm_loop,
    "torch-stack-mean": torch_stack_mean,
    "torch-foreach-lerp": torch_foreach_lerp,
}


def main() -> None:
    """Averages as the arguments say."""
    if len(sys.argv) < 4 or sys.argv[1] not in WAYS:
        sys.exit(f"{__doc__}\nWAY is one of {', '.join(WAYS)}")
    way, output, *inputs = sys.argv[1:]
    with torch.no_grad():
        save(WAYS[way](inputs), output)


if __name__ == "__main__":
    main()
