"""Image datasets of several domains: listing, checking, decoding, augmenting.

Public names are loaded on first use, so that listing and checking files does not pay for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy

if TYPE_CHECKING:
    from ratfast.data import demo
    from ratfast.data.augmentation import Augmentation
    from ratfast.data.backend import BACKENDS
    from ratfast.data.decoded import DecodedCache, DecodedImages, decode
    from ratfast.data.files import BadImage, check_images, find_bad_images
    from ratfast.data.folders import Domain, DomainDataset, scan
    from ratfast.data.loader import Batch, Loader, build_loader
    from ratfast.data.training_cache import TrainingCache

__all__ = [
    "BACKENDS",
    "Augmentation",
    "BadImage",
    "Batch",
    "DecodedCache",
    "DecodedImages",
    "Domain",
    "DomainDataset",
    "Loader",
    "TrainingCache",
    "build_loader",
    "check_images",
    "decode",
    "demo",
    "find_bad_images",
    "scan",
]

_HOMES = {
    "BACKENDS": "backend",
    "Augmentation": "augmentation",
    "BadImage": "files",
    "Batch": "loader",
    "DecodedCache": "decoded",
    "DecodedImages": "decoded",
    "Domain": "folders",
    "DomainDataset": "folders",
    "Loader": "loader",
    "TrainingCache": "training_cache",
    "build_loader": "loader",
    "check_images": "files",
    "decode": "decoded",
    "demo": None,
    "find_bad_images": "files",
    "scan": "folders",
}

__getattr__ = lazy.attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
