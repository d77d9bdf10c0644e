"""What an update moves through memory, counted: with normalisation as passes of its own, folded, and compiled.

    python benchmarks/traffic.py [--network resnet50] [--batch 96] [--size 224] [--compiled]

Forward and backward of a training step in bfloat16 autocast, channels-last; the optimizer's part is the same for all.
Counted are the bytes of the tensors that each operator reads and writes, which is what it moves where nothing stays in
a cache: of eager operators as they are dispatched, of compiled ones as torch's compiler counts its fused kernels.
Either is linear in the batch, activations times its size plus weights, so two batches of two and four images on the
CPU, where this runs, give both terms, and no GPU is needed. The count is the same on every machine.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ratfast import models
from ratfast.models.folding import fold_batch_norm

CLASSES = 7
SMALL = (2, 4)
"""Batches that are counted."""


class Traffic(TorchDispatchMode):
    """Adds up what operators read and write, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {
            tensor.data_ptr(): tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        if function.is_view or not made:
            return result
        self.bytes[str(function.overloadpacket)] += sum(
            tensor.numel() * tensor.element_size() for tensor in [*given.values(), *made]
        )
        return result


def build(network: str, size: int, fold: bool) -> models.Classifier:
    """The network in training, as the trainer has it."""
    torch.manual_seed(0)
    model = models.build(network, CLASSES, image_size=size).to(memory_format=torch.channels_last).train()
    if fold:
        fold_batch_norm(model.featurizer, model.featurizer.pairs)
    return model


def update(model: Callable[[Tensor], Tensor], batch: int, size: int) -> None:
    """Forward and backward."""
    images = torch.rand(batch, 3, size, size).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()


def count_eager(network: str, size: int, fold: bool, batch: int) -> Counter[str]:
    """Bytes by operator."""
    model = build(network, size, fold)
    with Traffic() as traffic:
        update(model, batch, size)
    return traffic.bytes


def count_compiled(network: str, size: int, fold: bool, batch: int) -> Counter[str]:
    """Bytes of the compiler's kernels and of those that it calls."""
    from torch._inductor import compile_fx, config, metrics

    model = build(network, size, fold)
    torch.compiler.reset()
    metrics.reset()
    log = compile_fx.inductor_metrics_log  # the compiler counts where it is to log what it counted
    log.setLevel(logging.INFO)
    log.propagate = False
    with config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update(torch.compile(model, dynamic=False), batch, size)
    return Counter({"all": metrics.num_bytes_accessed})


def at(batch: int, count: Callable[[int], Counter[str]]) -> Counter[str]:
    """The bytes of a batch, from those of two small ones."""
    few, more = (count(small) for small in SMALL)
    return Counter(
        {
            name: round(few[name] + (more[name] - few[name]) * (batch - SMALL[0]) / (SMALL[1] - SMALL[0]))
            for name in more
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--compiled", action="store_true", help="count the compiler's kernels too")
    asked = parser.parse_args()
    ways = {"eager": count_eager} | ({"compiled": count_compiled} if asked.compiled else {})
    base = 0
    for way, count in ways.items():
        for fold in (False, True):
            found = at(asked.batch, lambda batch: count(asked.network, asked.size, fold, batch))  # noqa: B023
            total = found.total()
            base = base or total
            print(
                f"{way}, {'folded' if fold else 'passes'}: {total / 1e9:.1f} GB, {total / base:.2f} of the first"
            )
            for name, size in found.most_common(8 if len(found) > 1 else 0):
                print(f"    {name:40} {size / 1e9:8.2f} GB")


if __name__ == "__main__":
    main()
