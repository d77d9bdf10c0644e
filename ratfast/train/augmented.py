"""Images that are augmented anew at each evaluation, as those of training are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ratfast.config import Data
from ratfast.data.augmentation import Augmentation, draw_augmentation
from ratfast.data.backend import open_backend
from ratfast.data.files import read_image
from ratfast.models import Classifier

_BATCH = 64


class AugmentedSplit:
    """Every image of a split once, augmented by draws of the step. A context manager: it holds a decoder.

    Args:
        paths: the files.
        model: says how images are normalised.
        data: the size of the images, and what decodes them.
        device: where they are made.
        seed: with the step it decides everything random.
    """

    def __init__(
        self, paths: Sequence[str], model: Classifier, data: Data, device: torch.device, seed: int
    ) -> None:
        self._paths = paths
        self._seed = seed
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="ratfast-read")
        self._backend = open_backend(
            data.backend,
            image_size=data.image_size,
            max_batch=max(1, min(_BATCH, len(paths))),
            device=device,
            mean=model.normalisation.mean,
            std=model.normalisation.std,
        )

    def __call__(self, step: int) -> Iterator[Tensor]:
        """Yields float `(B, 3, S, S)`, normalised."""
        for number, start in enumerate(range(0, len(self._paths), _BATCH)):
            images = list(self._readers.map(read_image, self._paths[start : start + _BATCH]))
            # The batches of a step have draws of their own: no run is as long as 2**20 steps.
            draws = draw_augmentation(Augmentation(), self._seed, step + (number << 20), len(images))
            yield self._backend.augment(images, draws)

    def __enter__(self) -> AugmentedSplit:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._backend.close()
