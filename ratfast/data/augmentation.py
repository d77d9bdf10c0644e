"""The paper's augmentation, and its random draws as arrays.

Every random decision of a training step (which images, which crops, which colours) is drawn here, from the
seed and the number of the step alone, and both decoding backends carry out the same draws. So any step can
be reproduced without those before it, and a run does not depend on the backend, on threads or on where it
was resumed.

The operations are those of DomainBed: `RandomResizedCrop`, `RandomHorizontalFlip`, `ColorJitter`,
`RandomGrayscale`. The four colour operations always come in the order brightness, contrast, saturation, hue
(torchvision shuffles them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratfast.errors import InputError

CROP_ATTEMPTS = 10
"""Crops that are tried before the central one is taken, as in torchvision."""

COLOUR_OPERATIONS = ("brightness", "contrast", "saturation", "hue", "grayscale")
"""The colour operations, in the order they are carried out."""


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for every training image. The defaults are the paper's.

    Attributes:
        scale: range of the crop's area, as a share of the image's.
        ratio: range of the crop's width / height, drawn log-uniformly.
        flip: probability of a horizontal flip.
        brightness: the factor is uniform on [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise, about the mean grey of the image.
        saturation: likewise, about the grey of each pixel.
        hue: the shift is uniform on [-hue, hue], in turns of the colour circle; at most 0.5.
        grayscale: probability of dropping the colours.

    Raises:
        InputError: a value is outside its range.
    """

    scale: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.3
    grayscale: float = 0.1

    def __post_init__(self) -> None:
        for key, upper in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, key)
            if not 0 < low <= high <= upper:
                raise InputError(
                    f"augmentation.{key} must be two numbers 0 < low <= high <= {upper}, but is {low, high}"
                )
        for key, upper in (
            ("flip", 1.0),
            ("grayscale", 1.0),
            ("hue", 0.5),
            ("brightness", math.inf),
            ("contrast", math.inf),
            ("saturation", math.inf),
        ):
            if not 0 <= getattr(self, key) <= upper:
                raise InputError(
                    f"augmentation.{key} must be between 0 and {upper}, but is {getattr(self, key)}"
                )

    @property
    def colour_operations(self) -> tuple[str, ...]:
        """The colour operations that can happen, in the order they are carried out."""
        return tuple(name for name in COLOUR_OPERATIONS if getattr(self, name))


@dataclass(frozen=True, eq=False)
class Draws:
    """The random decisions for N images; every array has N rows.

    Attributes:
        crops: uniform numbers in [0, 1) that `crop_box` turns into a box once the image size is known,
            (N, CROP_ATTEMPTS, 4) float64; None where the image is taken whole.
        scale: range of the crop's area.
        ratio: range of the crop's aspect.
        flip: bool.
        brightness: factor, float32.
        contrast: factor, float32.
        saturation: factor, float32.
        hue: shift in turns, float32.
        grayscale: bool.
        colour_operations: names of the colour operations to carry out, in order; the others are left out,
            since even a hue shift of 0 rounds.
    """

    crops: np.ndarray | None
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grayscale: np.ndarray
    colour_operations: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.flip)

    def box(self, row: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The crop `(top, left, height, width)` of an image of this size, in pixels."""
        if self.crops is None:
            return 0, 0, height, width
        return crop_box(self.crops[row], height, width, self.scale, self.ratio)


def draw_samples(seed: int, step: int, lengths: Sequence[int], batch_size: int) -> np.ndarray:
    """Draw the samples of a step, with replacement, as DomainBed's infinite loaders do.

    Args:
        seed: the run's seed.
        step: number of the step.
        lengths: number of samples in each training domain.
        batch_size: samples per domain.

    Returns:
        Positions within each domain, (len(lengths), batch_size) int64.
    """
    generator = _generator(seed, step, stream=0)
    return np.stack([generator.integers(0, length, batch_size, dtype=np.int64) for length in lengths])


def draw_augmentation(augmentation: Augmentation | None, seed: int, step: int, count: int) -> Draws:
    """Draw the augmentation of a step's images.

    Args:
        augmentation: what to draw; None takes every image whole and unchanged.
        seed: the run's seed.
        step: number of the step.
        count: number of images.

    Returns:
        The draws.
    """
    if augmentation is None:
        one, no = np.ones(count, np.float32), np.zeros(count, bool)
        return Draws(None, (1.0, 1.0), (1.0, 1.0), no, one, one, one, np.zeros(count, np.float32), no, ())
    generator = _generator(seed, step, stream=1)
    # One row of numbers per image and in this order: an image's draws do not depend on how many follow it.
    numbers = generator.random((count, 4 * CROP_ATTEMPTS + 6))
    flip, brightness, contrast, saturation, hue, grayscale = numbers[:, 4 * CROP_ATTEMPTS :].T

    def factor(uniform: np.ndarray, amount: float) -> np.ndarray:
        low, high = max(0.0, 1 - amount), 1 + amount
        return (low + uniform * (high - low)).astype(np.float32)

    return Draws(
        numbers[:, : 4 * CROP_ATTEMPTS].reshape(count, CROP_ATTEMPTS, 4),
        augmentation.scale,
        augmentation.ratio,
        flip < augmentation.flip,
        factor(brightness, augmentation.brightness),
        factor(contrast, augmentation.contrast),
        factor(saturation, augmentation.saturation),
        ((2 * hue - 1) * augmentation.hue).astype(np.float32),
        grayscale < augmentation.grayscale,
        augmentation.colour_operations,
    )


def crop_box(
    uniform: np.ndarray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Choose a crop by torchvision's rejection algorithm (`RandomResizedCrop.get_params`).

    Args:
        uniform: numbers in [0, 1), (attempts, 4): area, aspect, top, left of each attempt.
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale: range of the crop's area, as a share of the image's.
        ratio: range of the crop's width / height.

    Returns:
        `(top, left, height, width)` in pixels, inside the image: the first attempt that fits, or else the
        largest central crop of an allowed aspect.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, top, left in uniform.tolist():
        target = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = min(width, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _generator(seed: int, step: int, stream: int) -> np.random.Generator:
    # A counter-based generator: the pair (seed, step) is its key, so no state is carried between steps.
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, step], counter=[0, 0, 0, stream]))
