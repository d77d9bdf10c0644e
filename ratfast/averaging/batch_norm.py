"""Batch-norm statistics of averaged models: whether the members' differ, and how to compute them anew.

The mean of weights has activations of other means and variances than any member (Izmailov et al., arXiv 1803.05407,
section 3.2), so neither the first member's statistics nor the mean of all fit exactly. `recompute_batch_norm` takes
them from data. Where batch norm stayed frozen in training, as in Model Ratatouille, all members agree and nothing
needs to be done.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ratfast.errors import InputError


@dataclass(frozen=True)
class Difference:
    """How far the batch-norm statistics of models are apart.

    Attributes:
        name: the buffer in which they differ most, such as "layer1.0.bn1.running_var".
        model: the index of the model in which that buffer is farthest from the first model's.
        distance: `max |x - y| / max |x|` over that buffer of the first model (x) and the other one (y).
        count: in how many buffers any model differs from the first.
    """

    name: str
    model: int
    distance: float
    count: int


def statistics_difference(models: Sequence[Mapping[str, Tensor]]) -> Difference | None:
    """Compares the batch-norm statistics (`running_mean`, `running_var`) of models with the first model's.

    The counters `num_batches_tracked` are left out: they play no part in evaluation.

    Args:
        models: state dicts of one architecture.

    Returns:
        The worst difference, or None where all are equal. Statistics that are not finite in one model only are
        infinitely far from the other's.
    """
    worst: Difference | None = None
    count = 0
    for name in models[0]:
        if name.rpartition(".")[2] not in ("running_mean", "running_var"):
            continue
        first = models[0][name].detach().double()
        distances = [_distance(first, model[name].detach().to(first)) for model in models[1:]]
        if not any(distances):
            continue
        count += 1
        index = max(range(len(distances)), key=distances.__getitem__)
        if worst is None or distances[index] > worst.distance:
            worst = Difference(name, index + 1, distances[index], count)
    return None if worst is None else Difference(worst.name, worst.model, worst.distance, count)


def warn_if_statistics_differ(models: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> None:
    """Gives one warning where the statistics of models differ and an average is to keep the first's.

    Args:
        models: state dicts of one architecture.
        labels: what each is called.
    """
    worst = statistics_difference(models)
    if worst is None:
        return
    others = f" and {worst.count - 1} more" if worst.count > 1 else ""
    warnings.warn(
        f"the average keeps the batch-norm statistics of {labels[0]}, but those of the models differ: "
        f"{worst.name!r}{others}, by up to {worst.distance:.2g} of its largest value in {labels[worst.model]}; "
        "ratfast.averaging.recompute_batch_norm(model, loader) computes those of the average",
        stacklevel=3,
    )


@torch.no_grad()
def recompute_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    batches: int | None = None,
) -> int:
    """Sets a model's batch-norm statistics to those of data, in place.

    Runs the model over the data with every batch-norm layer normalising by the batch, as in training, and everything
    else in evaluation (so dropout is off). `running_mean` and `running_var` become the mean and the unbiased variance
    of each channel over all the layer's inputs, pooled exactly in float64 whatever the sizes of the batches:
    `var = (sum_b M_b + sum_b n_b (m_b - m)^2) / (n - 1)` with `m_b`, `M_b` the mean and the sum of squared
    deviations in batch b. (`torch.optim.swa_utils.update_bn` averages the batches' variances instead, which leaves
    out the variance between batches and counts a small last batch as much as any.) `num_batches_tracked` becomes
    the number of batches. Layers without statistics of their own, and layers that no batch reaches, stay as they
    are.

    Args:
        model: called with one batch of inputs at a time.
        loader: gives tensors, or lists or tuples whose first entry is the tensor of inputs.
        device: where the inputs are moved to; by default the device of the model's first parameter.
        batches: how many to use; by default all.

    Returns:
        How many batches were used; 0, without a look at the data, if the model has no batch-norm statistics.

    Raises:
        InputError: the loader gives no batch, gives something else than tensors, reaches no batch-norm layer, or a
            layer saw less than two values of a channel. The model is then as it was.
    """
    layers = [
        layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    if not layers:
        return 0
    if device is None:
        device = next(tensor.device for tensor in itertools.chain(model.parameters(), model.buffers()))
    pooled = {layer: _Pooled() for layer in layers}
    used = 0
    with _normalising_by_batches(model, pooled):
        for batch in itertools.islice(loader, batches):
            model(_inputs(batch).to(device))
            used += 1
    if used == 0:
        raise InputError("the loader gave no batch, so there are no batch-norm statistics to compute")
    reached = {layer: sums for layer, sums in pooled.items() if sums.count}
    if not reached:
        raise InputError(
            "the data reached no batch-norm layer of the model, so there are no statistics to compute"
        )
    if any(sums.count < 2 for sums in reached.values()):
        raise InputError("a batch-norm layer saw less than two values of a channel, which have no variance")
    for layer, sums in reached.items():
        layer.running_mean.copy_(sums.mean)
        layer.running_var.copy_(sums.squares / (sums.count - 1))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(used)
    return used


class _Pooled:
    """Mean and sum of squared deviations of each channel over batches, merged exactly (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor
        self.squares: Tensor

    def add(self, values: Tensor) -> None:
        """Adds a batch: (N, C) or (N, C, ...)."""
        axes = [axis for axis in range(values.dim()) if axis != 1]
        count = values.numel() // max(values.shape[1], 1)
        if count == 0:
            return
        wide = values.double()
        mean = wide.mean(axes)
        squares = (wide - mean.view(-1, *[1] * (wide.dim() - 2))).square_().sum(axes)
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        apart = mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + squares + apart.square() * (self.count * count / total)
        self.count = total


@contextlib.contextmanager
def _normalising_by_batches(model: nn.Module, pooled: Mapping[nn.Module, _Pooled]) -> Iterator[None]:
    """Modes for the pass over the data, with a note of what enters each layer; all is put back at the end."""
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in pooled}
    before = {layer: [buffer.clone() for buffer in layer.buffers(recurse=False)] for layer in pooled}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pooled[layer].add(inputs[0].detach())

    hooks = []
    try:
        model.eval()
        for layer in pooled:
            layer.train()
            layer.momentum = 0.0  # running statistics stand still
            hooks.append(layer.register_forward_pre_hook(note))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum
            for buffer, old in zip(layer.buffers(recurse=False), before[layer], strict=True):
                buffer.copy_(old)
        for module, mode in modes.items():
            module.training = mode


def _inputs(batch: Any) -> Tensor:
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"the loader gave a {type(inputs).__name__}, expected a tensor or a list that begins with one"
        )
    return inputs


def _distance(first: Tensor, other: Tensor) -> float:
    apart = (first - other).abs()
    equal = (first == other) | (first.isnan() & other.isnan())
    apart = apart.masked_fill(equal, 0.0).nan_to_num(nan=float("inf"), posinf=float("inf"))
    if apart.numel() == 0 or apart.max() == 0:
        return 0.0
    scale = first.abs().max().item()
    return apart.max().item() / scale if 0 < scale < float("inf") else float("inf")
