"""N random models with the shapes of a torchvision network, in memory or in files: what contestants average."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from torch import Tensor

_SPREAD = 0.1  # values are uniform in +-_SPREAD; variances of batch norms around 1

_ALIGNMENT = 64  # bytes


def on_meta(network: str) -> torch.nn.Module:
    """A torchvision model without memory."""
    with torch.device("meta"):
        return getattr(torchvision.models, network)()


class Models:
    """N models with the shapes of a network's parameters, each a row of one slab and a dict of views of it.

    Attributes:
        slab: (N, parameters); rows start at multiples of 64 bytes.
        rows: its N rows, 1-D.
        dicts: the rows' tensors by name.
        out, out_dict: a row more, and its tensors by name.
    """

    def __init__(self, network: str, count: int, dtype: torch.dtype, device: torch.device):
        self.network = network
        self.shapes = {name: parameter.shape for name, parameter in on_meta(network).named_parameters()}
        numel = sum(shape.numel() for shape in self.shapes.values())
        padding = -numel % (_ALIGNMENT // dtype.itemsize)
        self.slab = torch.empty(count, numel + padding, dtype=dtype, device=device)[:, :numel]
        generator = torch.Generator(device).manual_seed(0)
        self.rows = list(self.slab)
        for row in self.rows:
            row.uniform_(-_SPREAD, _SPREAD, generator=generator)
        self.dicts = [self.views(row) for row in self.rows]
        self.out = torch.empty_like(self.rows[0])
        self.out_dict = self.views(self.out)

    def __len__(self) -> int:
        return len(self.rows)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """The tensors in a row, by name."""
        pieces = row.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def flat(self, state: dict[str, Tensor]) -> Tensor:
        """A dict of tensors as one row; a copy."""
        return torch.cat([state[name].flatten() for name in self.shapes])

    def modules(self) -> list[torch.nn.Module]:
        """The models as modules, whose parameters are the rows' memory."""
        return [self.module(state) for state in self.dicts]

    def module(self, state: dict[str, Tensor]) -> torch.nn.Module:
        """A module whose parameters are the given tensors and whose buffers are zero."""
        module = on_meta(self.network)
        for name, tensor in state.items():
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(tensor))
        for name, buffer in list(module.named_buffers()):
            owner, _, attribute = name.rpartition(".")
            zeros = torch.zeros_like(buffer, device=self.slab.device)
            setattr(module.get_submodule(owner), attribute, zeros)
        return module

    def expected(self, weights: Tensor) -> Iterator[Tensor]:
        """For every row of `weights`, (K, N), the weighted sum in float64."""
        for row_weights in weights.tolist():
            total = torch.zeros_like(self.rows[0], dtype=torch.float64)
            for weight, row in zip(row_weights, self.rows, strict=True):
                total.add_(row.double(), alpha=weight)
            yield total


def random_state(network: str, seed: int) -> dict[str, Tensor]:
    """A state dict with the network's shapes and buffers; `num_batches_tracked` is the same for every seed.

    mergekit refuses integer buffers that differ, and one recipe with one number of steps makes them equal.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in on_meta(network).state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.full(tensor.shape, 1000, dtype=tensor.dtype)
        elif name.endswith("running_var"):
            state[name] = torch.empty(tensor.shape).uniform_(0.5, 1.5, generator=generator)
        else:
            state[name] = torch.empty(tensor.shape).uniform_(-_SPREAD, _SPREAD, generator=generator)
    return state


def write_models(folder: Path, network: str, count: int) -> tuple[list[Path], list[Path]]:
    """Writes the same models twice, as safetensors and as torch.save does; both are then in the page cache.

    Args:
        folder: where; into a folder in it for this network and number. Files that are there are taken as they are.
        network: a torchvision model that gives the shapes.
        count: how many models.

    Returns:
        The safetensors files and the `.pth` files.
    """
    folder = folder / f"{count}-{network}"
    folder.mkdir(parents=True, exist_ok=True)
    safe = [folder / f"{index:03}.safetensors" for index in range(count)]
    pickled = [path.with_suffix(".pth") for path in safe]
    for index in range(count):
        if safe[index].exists() and pickled[index].exists():
            continue
        state = random_state(network, index)
        torch.save(state, pickled[index])
        safetensors.torch.save_file(state, safe[index])
    os.sync()
    for path in (*safe, *pickled):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    return safe, pickled
