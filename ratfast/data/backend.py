"""From encoded images to batches: a decoder, then one pass that crops, resizes, flips, recolours and normalises.

The decoders (`dali_decoder`, `torchvision_decoder`) give the pixels that PIL gives; the pass is
`ratfast.image_ops.transform_images_`, which gives the numbers that torchvision gives on PIL images.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ratfast.data.augmentation import COLOUR_OPERATIONS, Draws
from ratfast.data.files import EncodedImage
from ratfast.errors import InputError
from ratfast.image_ops import COLOUR_BITS, OUTPUT_DTYPES, scale_and_shift, transform_images_

BACKENDS = ("auto", "dali", "torchvision")
"""Names of the decoders: NVIDIA DALI, torchvision with PIL, or the faster of them that works here."""

MOST_THREADS = 3
"""Threads of a backend unless told otherwise: with DALI's as many again, and the loader's own, at most 8."""


class Decoder(Protocol):
    """Decodes images. It serves one thread at a time.

    Attributes:
        name: its name.
    """

    name: str

    def decode(self, images: Sequence[EncodedImage], boxes: np.ndarray) -> tuple[list[Tensor], np.ndarray]:
        """Decode images, or the part of them that is needed.

        Args:
            images: N encoded images.
            boxes: (N, 4) int64: top, left, height, width of what is needed, in pixels.

        Returns:
            N uint8 tensors (H, W, 3), each valid until the next call, and where in them the boxes lie, (N, 4) int64.

        Raises:
            InputError: an image cannot be decoded; names the file.
        """
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...


class Backend:
    """Turns encoded or decoded images into batches on one device. It serves one thread at a time.

    Args:
        decoder: decodes.
        pool: threads of the pass; shut down by `close`.
        image_size: side S of the images made, in pixels.
        device: where the batches are made.
        mean: normalisation's mean of RGB in [0, 1].
        std: normalisation's standard deviation of RGB in [0, 1].
        dtype: of normalised images.

    Attributes:
        name: the decoder's.
        pool: threads that the caller may read files on.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: ThreadPoolExecutor,
        image_size: int,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        threads: int,
    ) -> None:
        self.name = decoder.name
        self.pool = pool
        self._decoder = decoder
        self._size = image_size
        self._device = device
        self._dtype = dtype
        self._threads = threads
        self._scale, self._shift = scale_and_shift(mean, std)

    def augment(self, images: Sequence[EncodedImage], draws: Draws) -> Tensor:
        """Decode, crop, resize, change colours, flip and normalise: (N, 3, S, S), channels-last.

        Raises:
            InputError: an image cannot be decoded; names the file.
        """
        boxes = _boxes(draws, [(image.height, image.width) for image in images])
        pixels, boxes = self._decoder.decode(images, boxes)
        return self._transform(pixels, boxes, draws)

    def augment_decoded(self, pixels: Sequence[Tensor], draws: Draws) -> Tensor:
        """As `augment`, of images decoded before: uint8 (H, W, 3), all on one device."""
        return self._transform(pixels, _boxes(draws, [tuple(image.shape[:2]) for image in pixels]), draws)

    def resize(self, images: Sequence[EncodedImage]) -> Tensor:
        """Decode and resize without keeping the aspect: uint8 (N, 3, S, S), channels-last.

        Raises:
            InputError: an image cannot be decoded; names the file.
        """
        pixels, boxes = self._decoder.decode(images, _whole(images))
        return self._transform(pixels, boxes, None)

    def shrink(self, images: Sequence[EncodedImage], side: int) -> list[Tensor]:
        """Decode, and where the shorter side is longer than `side` resize to that, keeping the aspect.

        Returns:
            uint8 tensors (H, W, 3) on the device that decodes, each with memory of its own.

        Raises:
            InputError: an image cannot be decoded; names the file.
        """
        pixels, _ = self._decoder.decode(images, _whole(images))
        return list(self._map(_Shrinking(side), pixels))

    def close(self) -> None:
        """Release threads and memory."""
        self._decoder.close()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _transform(self, pixels: Sequence[Tensor], boxes: np.ndarray, draws: Draws | None) -> Tensor:
        count = len(pixels)
        device = pixels[0].device if count else self._device
        out = torch.empty(
            (count, self._size, self._size, 3),
            dtype=torch.uint8 if draws is None else self._dtype,
            device=device,
            # A copy to the GPU can then go on beside other work.
            pin_memory=device.type == "cpu" and self._device.type == "cuda",
        )
        arguments = [torch.from_numpy(boxes), *_colour_arguments(draws, count)]

        def part(rows: slice) -> None:
            images = pixels[rows]
            transform_images_(
                out[rows], images, *[values[rows] for values in arguments], self._scale, self._shift
            )

        parts = self._threads if device.type == "cpu" else 1
        list(self._map(part, _slices(count, parts)))
        return out.to(self._device, non_blocking=True).permute(0, 3, 1, 2)

    def _map(self, function, items: Sequence) -> Iterator:
        # On a GPU the calling thread's stream matters, and the work is not the host's.
        on_gpu = self._device.type == "cuda"
        return map(function, items) if on_gpu or len(items) < 2 else self.pool.map(function, items)


class _Shrinking:
    """Resizes one image as `Resize(side)` does, if that makes it smaller."""

    def __init__(self, side: int) -> None:
        self._side = side

    def __call__(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[:2]
        short = min(height, width)
        if short <= self._side:
            return pixels.clone()
        size = [self._side * height // short, self._side * width // short]
        out = torch.empty((1, *size, 3), dtype=torch.uint8, device=pixels.device)
        box = torch.tensor([[0, 0, height, width]])
        transform_images_(out, [pixels], box, *_colour_arguments(None, 1), torch.ones(3), torch.zeros(3))
        return out[0]


def open_backend(
    name: str,
    *,
    image_size: int,
    max_batch: int,
    device: torch.device | str = "cpu",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> Backend:
    """Open a backend.

    Args:
        name: "dali", "torchvision", or "auto": DALI on a CUDA device if it is installed and starts (with one
            warning where it is installed and does not start), torchvision otherwise.
        image_size: side S of the images made, in pixels.
        max_batch: most images per call.
        device: where the images are made.
        mean: normalisation's mean of RGB in [0, 1].
        std: normalisation's standard deviation of RGB in [0, 1].
        dtype: of normalised images: torch.float32 or torch.bfloat16.
        threads: threads that decode; as many as this process may use, at most `MOST_THREADS`, if None.

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
    if dtype not in OUTPUT_DTYPES[1:]:
        raise InputError(f"images can be torch.float32 or torch.bfloat16, but not {dtype}")
    device = torch.device(device)
    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ratfast-decode")
    decoder = _open_decoder(name, max_batch, device, threads, pool)
    return Backend(decoder, pool, image_size, device, mean, std, dtype, threads)


def _open_decoder(
    name: str, max_batch: int, device: torch.device, threads: int, pool: ThreadPoolExecutor
) -> Decoder:
    # On the CPU both decode with libjpeg-turbo, and torchvision needs no threads beside the pool's.
    if name == "dali" or (name == "auto" and device.type == "cuda"):
        try:
            from ratfast.data.dali_decoder import DaliDecoder

            return DaliDecoder(max_batch, device, threads)
        except ImportError as error:
            if name == "dali":
                raise InputError(
                    f"the image backend dali needs nvidia-dali, which cannot be imported: {error}"
                ) from error
        except RuntimeError as error:
            if name == "dali":
                raise
            warnings.warn(f"DALI does not start ({error}); images are decoded by torchvision", stacklevel=3)
    from ratfast.data.torchvision_decoder import TorchvisionDecoder

    return TorchvisionDecoder(pool)


def _boxes(draws: Draws, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    boxes = [draws.box(row, height, width) for row, (height, width) in enumerate(sizes)]
    return np.array(boxes, np.int64).reshape(-1, 4)


def _whole(images: Sequence[EncodedImage]) -> np.ndarray:
    boxes = [(0, 0, image.height, image.width) for image in images]
    return np.array(boxes, np.int64).reshape(-1, 4)


def _colour_arguments(draws: Draws | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flips, factors and operations, as `transform_images_` takes them."""
    if draws is None:
        none = torch.zeros(count, dtype=torch.int64)
        return none, torch.zeros(count, 4), none
    chosen = sum(COLOUR_BITS[name] for name in draws.colour_operations if name != "grayscale")
    grayscale = "grayscale" in draws.colour_operations
    operations = chosen + COLOUR_BITS["grayscale"] * (draws.grayscale & grayscale).astype(np.int64)
    # As torchvision's adjust_hue rounds and wraps.
    hue = np.trunc(draws.hue.astype(np.float64) * 255) % 256
    factors = np.stack([draws.brightness, draws.contrast, draws.saturation, hue.astype(np.float32)], axis=1)
    return (
        torch.from_numpy(draws.flip.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(factors, np.float32)),
        torch.from_numpy(operations),
    )


def _slices(count: int, parts: int) -> list[slice]:
    cuts = np.linspace(0, count, min(count, parts) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


assert tuple(COLOUR_BITS) == COLOUR_OPERATIONS  # one order
