"""Images that are augmented anew at each evaluation, as those of training are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ratfast.data import Loader
from ratfast.data.augmentation import Augmentation, draw_augmentation

_BATCH = 64


class AugmentedSplit:
    """Every image of a split once, augmented by draws of the step.

    Args:
        paths: the files.
        loader: of the run, whose threads make these images too: training waits meanwhile.
        seed: with the step it decides everything random.
    """

    def __init__(self, paths: Sequence[str], loader: Loader, seed: int) -> None:
        self._paths = paths
        self._loader = loader
        self._seed = seed

    def __call__(self, step: int) -> Iterator[Tensor]:
        """Yields `(B, 3, S, S)`, normalised, as the loader makes them."""
        size = min(_BATCH, self._loader.largest_batch)
        for number, start in enumerate(range(0, len(self._paths), size)):
            paths = self._paths[start : start + size]
            # The batches of a step have draws of their own: no run is as long as 2**20 steps.
            draws = draw_augmentation(Augmentation(), self._seed, step + (number << 20), len(paths))
            yield self._loader.augment(paths, draws)
