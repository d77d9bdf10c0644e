"""timm's networks (extra `timm`) without their classifier."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import Tensor, nn

from ratfast.errors import InputError
from ratfast.models.classifier import Featurizer
from ratfast.models.registry import IMAGENET, TIMM, Normalisation


def make(name: str, image_size: int) -> Featurizer:
    """The network called `name` (with timm's tag of the weights or without), randomly initialised.

    Raises:
        InputError: timm has no such network, or it cannot take images of this size.
    """
    network = _create(name, image_size, pretrained=False)
    width = getattr(network, "head_hidden_size", None) or network.num_features
    head = network.pretrained_cfg.get("classifier") or "head"
    return Featurizer(network, width, head=head if isinstance(head, str) else head[0])


def normalisation(name: str) -> Normalisation:
    """What the images must be normalised with: as for the pre-trained weights."""
    found = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    if found is None:
        return IMAGENET
    return Normalisation(tuple(found.mean), tuple(found.std))


def default_state(name: str, image_size: int) -> dict[str, Tensor]:
    """The weights that the name's tag says, or timm's default ones, by timm's own download.

    Raises:
        InputError: there are none, or they cannot be downloaded.
    """
    try:
        return _create(name, image_size, pretrained=True).state_dict()
    except InputError:
        raise
    except Exception as error:  # of the hub's client, in as many kinds as there are transports
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the weights of {name} could not be downloaded ({reason}); pass a weights file with --weights PATH"
        ) from error


def _create(name: str, image_size: int, pretrained: bool) -> nn.Module:
    plain = name.removeprefix(TIMM)
    if not timm.is_model(plain):
        nearest = difflib.get_close_matches(plain, timm.list_models(), n=1)
        hint = f"; did you mean {TIMM + nearest[0]!r}?" if nearest else ""
        raise InputError(f"timm has no network {plain!r}{hint}")
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    try:
        return timm.create_model(plain, **options, img_size=image_size)
    except TypeError:  # it takes images of any size
        return timm.create_model(plain, **options)
    except (AssertionError, ValueError) as error:
        raise InputError(f"the backbone {name} cannot take images of {image_size} pixels: {error}") from error
