"""Building classifiers by name, and describing them so that a checkpoint is enough to build them again."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from ratfast.errors import InputError
from ratfast.models.classifier import Classifier
from ratfast.models.registry import Normalisation, find
from ratfast.models.weights import load_featurizer, load_featurizer_state


def build(
    name: str,
    num_classes: int,
    *,
    dropout: float = 0.0,
    weights: str | PathLike[str] | None = None,
    image_size: int = 224,
    classes: Sequence[str] | None = None,
) -> Classifier:
    """Builds a backbone with a new linear classifier, on the CPU and in training mode.

    Args:
        name: one of `backbone_names()`, `torchvision/NAME` or `timm/NAME`.
        num_classes: number C of classes, at least 1.
        dropout: probability in [0, 1) between features and classifier.
        weights: of the featurizer: None (random), `"default"` (trained on ImageNet: torchvision's download
            for its networks, timm's for timm's, the installed package's file for EfficientNet-Lite0), or a file as
            in `load_featurizer`.
        image_size: side of the square images it will see, in pixels.
        classes: names of the C classes.

    Raises:
        InputError: a name, number or file is not usable, or a package is missing.
    """
    backbone = find(name)
    if num_classes < 1:
        raise InputError(f"the number of classes is {num_classes}, expected at least 1")
    if classes is not None and len(classes) != num_classes:
        raise InputError(f"{len(classes)} class names were given for {num_classes} classes")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}, expected a number of at least 0 and below 1")
    if backbone.missing_packages():
        raise InputError(
            f"the backbone {name} needs the package {backbone.missing_packages()[0]}: "
            f'pip install "ratfast[{backbone.extra}]" installs it'
        )
    module = importlib.import_module(backbone.module)
    featurizer = module.make(name, image_size)
    if weights == "default":
        load_featurizer_state(
            featurizer, module.default_state(name, image_size), f"the default weights of {name}"
        )
    elif weights is not None:
        try:
            load_featurizer(featurizer, weights)
        except InputError as error:
            raise InputError(str(error).replace("this backbone", name)) from error
    return Classifier(
        featurizer,
        num_classes,
        backbone=name,
        normalisation=module.normalisation(name),
        image_size=image_size,
        dropout=dropout,
        classes=None if classes is None else tuple(classes),
    )


def describe(model: Classifier) -> dict[str, Any]:
    """What a checkpoint's metadata says of a model, JSON-able; `from_description` builds the model again."""
    return {
        "backbone": model.backbone,
        "num_classes": model.classifier.out_features,
        "classes": None if model.classes is None else list(model.classes),
        "image_size": model.image_size,
        "mean": list(model.normalisation.mean),
        "std": list(model.normalisation.std),
    }


def from_description(description: Mapping[str, Any]) -> Classifier:
    """The randomly initialised model that `describe` described.

    Raises:
        InputError: the description lacks an entry or has one that is not usable.
    """
    try:
        model = build(
            description["backbone"],
            description["num_classes"],
            image_size=description["image_size"],
            classes=description.get("classes"),
        )
        mean, std = (tuple(float(value) for value in description[key]) for key in ("mean", "std"))
    except KeyError as error:
        raise InputError(f"the description of the model lacks {error.args[0]!r}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the description of the model has an entry of the wrong type ({error})") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError("the description of the model needs 3 means and 3 standard deviations above 0")
    model.normalisation = Normalisation(mean, std)
    return model
