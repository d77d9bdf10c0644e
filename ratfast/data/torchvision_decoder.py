"""The decoder of torchvision (libjpeg-turbo) for JPEG files, and of PIL for everything else.

Both release the interpreter lock, so threads do in one process what DomainBed starts 8 workers per domain for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ratfast.data.files import EncodedImage, decode_rgb


class TorchvisionDecoder:
    """Decodes on the host, one image per thread.

    Args:
        pool: the threads.

    Attributes:
        name: "torchvision".
    """

    name = "torchvision"

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._jpeg = _jpeg_operator()

    def decode(self, images: Sequence[EncodedImage], boxes: np.ndarray) -> tuple[list[Tensor], np.ndarray]:
        """See `Decoder.decode`."""
        return list(self._pool.map(self._decode, images)), boxes

    def close(self) -> None:
        """Nothing to release: the pool is the caller's."""

    def _decode(self, image: EncodedImage) -> Tensor:
        if self._jpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
            return decode_with_pil(image)
        # torch warns of memory that it cannot write to
        data = image.data if image.data.flags.writeable else image.data.copy()
        try:
            return self._jpeg(torch.from_numpy(data), _RGB, False).permute(1, 2, 0)
        except RuntimeError:
            return decode_with_pil(image)  # or its sentence about the file


_RGB = 3  # torchvision.io.ImageReadMode.RGB


def decode_with_pil(image: EncodedImage) -> Tensor:
    """Decode an image of any kind with PIL: uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(decode_rgb(image)))


def _jpeg_operator() -> Callable[[Tensor, int, bool], Tensor] | None:
    """Torchvision's JPEG decoder, or None: newer versions leave it to torchcodec, and its function warns of that."""
    import torchvision.io  # noqa: F401 - registers it

    return getattr(torch.ops.image, "decode_jpeg", None)
