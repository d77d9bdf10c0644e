"""Batch-norm statistics of averaged models, computed anew from data.

The mean of weights has activations of other means and variances than any member (Izmailov et al., arXiv 1803.05407,
section 3.2), so neither the first member's statistics nor the mean of all fit exactly. `recompute_batch_norm` takes
them from data. Where batch norm stayed frozen in training, as in Model Ratatouille, all members agree and nothing
needs to be done; `ratfast.averaging.statistics` tells.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ratfast.checkpoints.names import is_statistic_name
from ratfast.errors import InputError


def statistics_of(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The batch-norm statistics of a state dict, for `ratfast.averaging.statistics`."""
    return {
        name: tensor.detach().double().cpu().numpy()
        for name, tensor in state.items()
        if is_statistic_name(name)
    }


def load_and_recompute(
    module: nn.Module,
    state: Mapping[str, Tensor],
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    batches: int | None = None,
) -> dict[str, Tensor]:
    """Loads averaged weights into a module and recomputes its batch-norm statistics.

    Args:
        module: of the averaged models' architecture.
        state: the average.
        loader: as in `recompute_batch_norm`, like `device` and `batches`.
        device: as there.
        batches: as there.

    Returns:
        The average with the new statistics: the module's state dict.

    Raises:
        InputError: the average does not fit the module, or as `recompute_batch_norm`.
    """
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise InputError(f"the average does not fit the module: {' '.join(str(error).split())}") from None
    recompute_batch_norm(module, loader, device, batches)
    return module.state_dict()


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
