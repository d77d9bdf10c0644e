"""The backend on PIL and torchvision: the operations of DomainBed themselves, on a pool of threads.

PIL releases the interpreter lock while it decodes, resizes and blends, so threads do in one process what
DomainBed starts 8 workers per domain for.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ratfast.data.augmentation import Draws
from ratfast.data.files import EncodedImage, decode_rgb

_ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


class TorchvisionBackend:
    """Decodes with PIL and transforms with `torchvision.transforms.v2.functional` on PIL images.

    Attributes:
        name: "torchvision".
    """

    name = "torchvision"

    def __init__(
        self, image_size: int, device: torch.device, mean: Sequence[float], std: Sequence[float], threads: int
    ) -> None:
        self._size = [image_size, image_size]
        self._device = device
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ratfast-decode")
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self._scale = torch.from_numpy(1 / (255 * std)).to(device)
        self._shift = torch.from_numpy(-mean / std).to(device)

    def augment(self, images: Sequence[EncodedImage], draws: Draws) -> torch.Tensor:
        """See `Backend.augment`."""
        rows = range(len(images))
        stacked = self._stack(
            self._pool.map(lambda row: self._augmented(images[row], draws, row), rows), len(images)
        )
        return torch.addcmul(self._shift, stacked.to(self._device).float(), self._scale).permute(0, 3, 1, 2)

    def resize(self, images: Sequence[EncodedImage]) -> torch.Tensor:
        """See `Backend.resize`."""
        resized = self._pool.map(lambda image: F.resize(decode_rgb(image), self._size), images)
        return self._stack(resized, len(images)).to(self._device).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _stack(self, images, count: int) -> torch.Tensor:
        batch = np.empty((count, *self._size, 3), np.uint8)
        for row, image in enumerate(images):
            batch[row] = np.asarray(image)
        return torch.from_numpy(batch)

    def _augmented(self, encoded: EncodedImage, draws: Draws, row: int) -> Image.Image:
        image = decode_rgb(encoded)
        box = draws.box(row, image.height, image.width)
        image = F.resized_crop(image, *box, self._size, InterpolationMode.BILINEAR, antialias=True)
        if draws.flip[row]:
            image = F.horizontal_flip(image)
        for name in draws.colour_operations:
            if name != "grayscale":
                image = _ADJUST[name](image, float(getattr(draws, name)[row]))
            elif draws.grayscale[row]:
                image = F.rgb_to_grayscale(image, num_output_channels=3)
        return image
