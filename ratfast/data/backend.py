"""What a decoding backend does, and choosing one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch

from ratfast.data.augmentation import Draws
from ratfast.data.files import EncodedImage
from ratfast.errors import InputError

BACKENDS = ("auto", "dali", "torchvision")
"""Names of the backends: NVIDIA DALI, torchvision with PIL, or the first of them that works here."""


class Backend(Protocol):
    """Turns encoded images into batches. Two backends given the same images and draws make the same batch.

    They agree up to rounding, the JPEG decoder and the hue formula (see `dali_backend`). A backend serves
    one thread at a time.

    Attributes:
        name: its name.
    """

    name: str

    def augment(self, images: Sequence[EncodedImage], draws: Draws) -> torch.Tensor:
        """Decode, crop, resize, change colours, flip and normalise: float32 (N, 3, S, S), channels-last.

        Raises:
            InputError: an image cannot be decoded; names the file.
        """
        ...

    def resize(self, images: Sequence[EncodedImage]) -> torch.Tensor:
        """Decode and resize without keeping the aspect: uint8 (N, 3, S, S), channels-last.

        Raises:
            InputError: an image cannot be decoded; names the file.
        """
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...


def open_backend(
    name: str,
    *,
    image_size: int,
    max_batch: int,
    device: torch.device | str = "cpu",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    threads: int | None = None,
) -> Backend:
    """Open a backend.

    Args:
        name: "dali", "torchvision", or "auto": DALI if it is installed and starts, torchvision otherwise
            (with one warning where DALI is installed and does not start).
        image_size: side S of the images made, in pixels.
        max_batch: most images per call.
        device: where the images are made.
        mean: normalisation's mean of RGB in [0, 1].
        std: normalisation's standard deviation of RGB in [0, 1].
        threads: decoding threads; as many as this process may use, at most 16, if None.

    Returns:
        The backend.

    Raises:
        InputError: the name is unknown, DALI was asked for and is not installed, or a number is out of range.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown image backend {name!r}; expected one of {', '.join(BACKENDS)}")
    if image_size < 1 or max_batch < 1:
        raise InputError(
            f"image size and batch size must be at least 1, but they are {image_size} and {max_batch}"
        )
    device = torch.device(device)
    threads = threads or min(16, len(os.sched_getaffinity(0)))
    if name != "torchvision":
        try:
            from ratfast.data.dali_backend import DaliBackend

            return DaliBackend(image_size, max_batch, device, mean, std, threads)
        except ImportError as error:
            if name == "dali":
                raise InputError(
                    f"the image backend dali needs nvidia-dali, which cannot be imported: {error}"
                ) from error
        except RuntimeError as error:
            if name == "dali":
                raise
            warnings.warn(f"DALI does not start ({error}); images are decoded by torchvision", stacklevel=2)
    from ratfast.data.torchvision_backend import TorchvisionBackend

    return TorchvisionBackend(image_size, device, mean, std, threads)
