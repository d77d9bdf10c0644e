"""Losses of the demonstration's network on its images, stepped by torch's optimizers and by ours.

`python benchmarks/training_curves.py [--steps N] [--image-size N] [--json FILE]` fine-tunes EfficientNet-Lite0 from
its ImageNet weights on three domains of digits, with the same seeds and batches for every contestant, and prints how
far each one's losses come from those of torch's for-loop. Rounding grows along a training, so that torch's own
implementations part from each other too: theirs is the distance that ours is held against.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ratfast.arena import Arena
from ratfast.optim import FusedAdam

OPTIONS = {"lr": 2e-4, "weight_decay": 1e-4}
CONTESTANTS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "torch-loop": lambda model: torch.optim.Adam(model.parameters(), **OPTIONS, foreach=False),
    "torch-foreach": lambda model: torch.optim.Adam(model.parameters(), **OPTIONS, foreach=True),
    "torch-fused": lambda model: torch.optim.Adam(model.parameters(), **OPTIONS, fused=True),
    "ratfast-list": lambda model: FusedAdam(model.parameters(), **OPTIONS),
    "ratfast-arena": lambda model: _on_arena(model),
}


def _on_arena(model: nn.Module) -> torch.optim.Optimizer:
    Arena(model)
    return FusedAdam(model.parameters(), **OPTIONS)


def curve(model: nn.Module, name: str, batches: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """The loss at every step of a training of a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = CONTESTANTS[name](model)
    torch.manual_seed(0)
    losses = []
    for images, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def distance(losses: Sequence[float], reference: Sequence[float]) -> float:
    """The largest difference between two curves."""
    return max(abs(one - other) for one, other in zip(losses, reference, strict=True))


def demonstration(steps: int, image_size: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The network, and batches of the target's training domains."""
    import numpy as np

    from ratfast import models
    from ratfast.data import build_loader, demo, scan

    model = models.build("efficientnet_lite0", 10, weights="default", image_size=image_size)
    model = model.to(memory_format=torch.channels_last)
    dataset = scan(demo.prepare() / demo.TARGET.name)
    chosen = {index: np.arange(len(dataset.domains[index])) for index in range(3)}
    mean, std = model.normalisation.mean, model.normalisation.std
    with build_loader(
        dataset, chosen, batch_size=12, image_size=image_size, mean=mean, std=std, seed=0
    ) as loader:
        found = [loader.batch_at(step) for step in range(steps)]
    return model, [(batch.images.clone(), batch.labels.clone()) for batch in found]


def main() -> None:
    """Trains once for every contestant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    model, batches = demonstration(arguments.steps, arguments.image_size)
    results, reference = [], None
    for name in CONTESTANTS:
        start = time.perf_counter()
        losses = curve(model, name, batches)
        seconds = time.perf_counter() - start
        reference = reference or losses
        largest = distance(losses, reference)
        print(
            f"{name:14} first {losses[0]:.6f}  last {losses[-1]:.6f}  farthest from torch's loop {largest:.2e}"
        )
        extra = {"losses": losses, "farthest_from_loop": largest}
        results.append({"group": "training curve", "contestant": name, "seconds": [seconds], "extra": extra})
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
