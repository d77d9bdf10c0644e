"""Training images decoded once, kept as uint8 at a resolution that the user states.

An image whose shorter side is longer than `side` is resized to that first, once, keeping its aspect, as
`torchvision.transforms.Resize(side)` does; others are kept as they are, and then training sees the numbers that it
would see without the cache. For a resized image the crop is drawn in the small image: the same area, aspect and
place, rounded to its pixels, and resized a second time, which blurs a little what the network sees. With a `side` of
256 and crops of at least 70 % of the area for a network of 224, the crop's shorter side is about 185 to 256 pixels:
some crops are enlarged that would otherwise be shrunk from the original.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ratfast.errors import InputError


class TrainingCache:
    """Decoded training images by file, for all loaders of a process; safe to share between threads.

    What a loader makes does not depend on what is in the cache: an image that is not, or for which there is no room,
    is decoded and resized anew each time.

    Args:
        side: longest shorter side kept, in pixels.
        max_bytes: most memory to keep; no limit if None.
        device: where images are kept. Batches of images kept on the CPU are made there.

    Attributes:
        side: as given.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self, side: int, *, max_bytes: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if side < 1:
            raise InputError(f"the training cache's side must be at least 1, but it is {side}")
        if max_bytes is not None and max_bytes < 0:
            raise InputError(f"the training cache's size must not be negative, but it is {max_bytes}")
        self.side = side
        self._max_bytes = max_bytes
        self._device = torch.device(device)
        self._images: dict[str, Tensor] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory of the images kept, in bytes."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._images)

    def get(self, path: str) -> Tensor | None:
        """The image of a file, uint8 (H, W, 3), or None. Not to be written to."""
        return self._images.get(path)

    def keep(self, paths: Sequence[str], images: Sequence[Tensor]) -> None:
        """Keep images if there is room.

        Args:
            paths: their files.
            images: uint8 (H, W, 3), from `Backend.shrink`.
        """
        for path, image in zip(paths, images, strict=True):
            with self._lock:
                size = image.numel()
                if path in self._images or (
                    self._max_bytes is not None and self._bytes + size > self._max_bytes
                ):
                    continue
                self._images[path] = image.to(self._device)
                self._bytes += size

    def clear(self) -> None:
        """Forget every image."""
        with self._lock:
            self._images.clear()
            self._bytes = 0
