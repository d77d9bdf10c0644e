"""Weights for a featurizer, from state dicts that name its tensors in different ways."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor

from ratfast.errors import InputError
from ratfast.models.classifier import Featurizer

_PREFIXES = ("featurizer.network.", "network.0.network.", "0.network.", "network.", "")
"""What may stand before a backbone's own tensor names: ratfast and DomainBed algorithms; DomainBed's
`network` inside an algorithm, and saved alone; a DomainBed featurizer saved alone; torchvision."""

_WRAPPERS = ("", "module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""

_HEADS = ("fc.", "_fc.", "classifier.", "head.")
"""The last layer, under the names that backbones give it; it belongs to another task and is never taken."""

_OPTIONAL_SUFFIX = ".num_batches_tracked"
"""A counter that evaluation never reads and that some exporters leave out."""


def load_featurizer(featurizer: Featurizer, source: str | PathLike[str]) -> None:
    """Reads the weights of a featurizer from a file; a head in the file is left out.

    Args:
        featurizer: what to fill, in place; values are converted to its dtypes and moved to its device.
        source: `.safetensors`, `.pt`, `.pth`, ...: whatever `ratfast.checkpoints.load` reads. The names may
            be torchvision's (with or without `fc`), DomainBed's (a whole algorithm, its `network` or its
            `featurizer`), or those of a ratfast checkpoint.

    Raises:
        InputError: the file cannot be read, is of another architecture, or holds values that are not finite.
    """
    from ratfast import checkpoints

    load_featurizer_state(featurizer, checkpoints.load(source), os.fspath(source))


def load_featurizer_state(featurizer: Featurizer, state: Mapping[str, Tensor], source: str) -> None:
    """Fills a featurizer in place from a state dict that may name the tensors as in `load_featurizer`.

    Args:
        featurizer: what to fill.
        state: names and tensors.
        source: what the state dict is called in an error.

    Raises:
        InputError: names or shapes belong to another architecture, or values are not finite.
    """
    expected = featurizer.network.state_dict()
    found = _own_names(state, expected)
    _check(found, expected, source)
    with torch.no_grad():
        for name, target in expected.items():
            if name in found:
                target.copy_(found[name])


def _own_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the prefix that meets most of the expected names, with the prefix taken off."""
    best: dict[str, Tensor] = {}
    best_score = (-1, -1)
    for prefix in (wrapper + prefix for prefix in _PREFIXES for wrapper in _WRAPPERS):
        found = {
            name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
        }
        score = (len(found.keys() & expected.keys()), len(found))
        if score > best_score:
            best, best_score = found, score
    return {name: tensor for name, tensor in best.items() if not name.startswith(_HEADS)}


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in expected if name not in found and not name.endswith(_OPTIONAL_SUFFIX)]
    unknown = [name for name in found if name not in expected]
    reshaped = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    if missing or unknown or reshaped:
        if reshaped:
            name = reshaped[0]
            ours, theirs = (tuple(tensors[name].shape) for tensors in (expected, found))
            example = f"{name} is {theirs} instead of {ours}"
        else:
            example = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not in the network"
        raise InputError(
            f"{source} does not hold the weights of this backbone: {len(missing)} names missing, "
            f"{len(unknown)} unknown, {len(reshaped)} of another shape, for example {example}"
        )
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{source} is not usable: {name} has values that are not finite")
