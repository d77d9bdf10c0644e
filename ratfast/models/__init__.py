"""Backbones by name, with a linear classifier on top and batch normalisation frozen.

Public names are loaded on first use: `ratfast.models.registry` stays importable without torch, for the recipe
and for `ratfast info`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy
from ratfast.models.registry import Normalisation, backbone_names

if TYPE_CHECKING:
    from ratfast.models.classifier import Classifier, Featurizer
    from ratfast.models.factory import build, describe, from_description
    from ratfast.models.folding import fold_batch_norm, unfold_batch_norm
    from ratfast.models.weights import load_featurizer

__all__ = [
    "Classifier",
    "Featurizer",
    "Normalisation",
    "backbone_names",
    "build",
    "describe",
    "fold_batch_norm",
    "from_description",
    "load_featurizer",
    "unfold_batch_norm",
]

_HOMES = {
    "Classifier": "classifier",
    "Featurizer": "classifier",
    "build": "factory",
    "describe": "factory",
    "fold_batch_norm": "folding",
    "from_description": "factory",
    "load_featurizer": "weights",
    "unfold_batch_norm": "folding",
}

__getattr__ = lazy.attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
