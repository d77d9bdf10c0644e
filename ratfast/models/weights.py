"""Weights for a featurizer, from state dicts of anywhere: names are matched whatever stands before them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from os import PathLike

import torch
from torch import Tensor

from ratfast.errors import InputError
from ratfast.models.classifier import Featurizer

_PREFERRED = ("featurizer.network.", "network.0.network.", "0.network.", "network.", "")
"""Prefixes that are taken first where several hold the backbone: DomainBed's algorithms list it twice, as `featurizer`
and within `network`."""

_OPTIONAL_SUFFIX = ".num_batches_tracked"
"""A counter that evaluation never reads and that some exporters leave out."""

_SHOWN = 3


def load_featurizer(featurizer: Featurizer, source: str | PathLike[str], *, buffers: bool = True) -> str:
    """Reads the weights of a featurizer from a file; a head in the file is left out.

    Args:
        featurizer: what to fill, in place; values are converted to its dtypes and moved to its device.
        source: `.safetensors`, `.pt`, `.pth`, ...: whatever `ratfast.checkpoints.load` reads. The names may
            be the backbone's own (torchvision's, timm's, with or without a head), or have anything before them
            (`module.`, `backbone.`, `featurizer.network.`): DomainBed's, ModelRatatouille's, ratfast's checkpoints.
        buffers: fill the buffers too, such as batch-norm statistics; False leaves them.

    Returns:
        What of the file was left out, as one phrase; empty where nothing was.

    Raises:
        InputError: the file cannot be read, is of another architecture, or holds values that are not finite.
    """
    from ratfast import checkpoints

    return load_featurizer_state(featurizer, checkpoints.load(source), os.fspath(source), buffers=buffers)


def load_featurizer_state(
    featurizer: Featurizer, state: Mapping[str, Tensor], source: str, *, buffers: bool = True
) -> str:
    """Fills a featurizer in place from a state dict that may name the tensors as in `load_featurizer`.

    Args:
        featurizer: what to fill.
        state: names and tensors.
        source: what the state dict is called in an error.
        buffers: as in `load_featurizer`.

    Returns:
        As `load_featurizer`.

    Raises:
        InputError: names or shapes belong to another architecture, or values are not finite.
    """
    expected = featurizer.network.state_dict()
    prefix = _find_prefix(state, expected, source)
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    own = _backbone_part(found, expected, featurizer.head_name)
    _check(own, expected, source)
    skipped = set() if buffers else {name for name, _ in featurizer.network.named_buffers()}
    with torch.no_grad():
        for name, target in expected.items():
            if name in own and name not in skipped:
                target.copy_(own[name])
    return _left_out(state, prefix, own)


def _backbone_part(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> dict[str, Tensor]:
    """All but heads: what is in no part of the network that the backbone has is one, or belongs to the training."""
    parts = {name.partition(".")[0] for name in expected}
    if not parts & {name.partition(".")[0] for name in found}:
        return dict(found)  # of another network altogether
    return {
        name: tensor
        for name, tensor in found.items()
        if name.partition(".")[0] in parts and not (name.startswith(head + ".") and name not in expected)
    }


def _find_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> str:
    """What stands before the names of the backbone: the prefix under which most of them are found."""
    counts: dict[str, int] = {}
    for name in state:
        for start in [0, *(index + 1 for index, letter in enumerate(name) if letter == ".")]:
            if name[start:] in expected:
                counts[name[:start]] = counts.get(name[:start], 0) + 1
    if not counts:
        if len(state) <= 2 and {name.rpartition(".")[2] for name in state} <= {"weight", "bias"}:
            raise InputError(
                f"{source} holds a head alone ({_listed(state)}) and no backbone, expected names such as "
                f"{next(iter(expected))}"
            )
        return ""
    most = max(counts.values())
    equal = [prefix for prefix, count in counts.items() if count == most]
    return next((prefix for prefix in _PREFERRED if prefix in equal), equal[0])


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


def _left_out(state: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor]) -> str:
    """Says what of a file was not taken; the second name of a tensor that was counts as taken."""
    taken = {prefix + name for name in own}
    addresses = {state[name].data_ptr() for name in taken}
    rest = [
        name for name, tensor in state.items() if name not in taken and tensor.data_ptr() not in addresses
    ]
    return f"left out {_listed(rest)}" if rest else ""


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
