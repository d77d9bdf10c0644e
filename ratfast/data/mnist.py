"""RotatedMNIST and ColoredMNIST as DomainBed defines them, from MNIST's images.

Sources: RotatedMNIST (arXiv 1508.07680), ColoredMNIST (arXiv 1907.02893), facebookresearch/DomainBed (`datasets.py`).
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ratfast.errors import InputError

LABEL_NOISE = 0.25
"""Share of ColoredMNIST's labels that are flipped."""

COLOUR_FLIPS = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}
"""Share of the images of a domain of ColoredMNIST whose colour is not their label's, in DomainBed's order."""

ANGLES = ("0", "15", "30", "45", "60", "75")
"""RotatedMNIST's domains: degrees counter-clockwise, in DomainBed's order."""


def rotated(image: np.ndarray, angle: int) -> Image.Image:
    """A digit, uint8 (H, W), turned counter-clockwise."""
    return Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)


def painted(image: np.ndarray, channel: int) -> Image.Image:
    """A digit, uint8 (H, W), in one channel: 0 red, 1 green."""
    colours = np.zeros((*image.shape, 3), np.uint8)
    colours[:, :, channel] = image
    return Image.fromarray(colours)


def noisy_labels(digits: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """ColoredMNIST's labels, bool: a digit below 5, flipped for `LABEL_NOISE` of them."""
    return (digits < 5) ^ (random.random(len(digits)) < LABEL_NOISE)


def colours(labels: np.ndarray, domain: str, random: np.random.Generator) -> np.ndarray:
    """The channel of each image of a domain of ColoredMNIST, bool."""
    return labels ^ (random.random(len(labels)) < COLOUR_FLIPS[domain])


def read_idx(path: Path) -> np.ndarray:
    """Read a file of MNIST's format, packed by gzip or not.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        InputError: it is another kind of file, or cut off.
    """
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        zeros, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        if zeros or kind != 8 or dimensions not in (1, 3):
            raise ValueError("of another kind")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise InputError(f"{path} is not a whole file of MNIST's format ({error})") from error


def make_rotated(images: np.ndarray, digits: np.ndarray) -> Iterator[tuple[str, int, Image.Image]]:
    """RotatedMNIST: each image with its domain and class, dealt to the domains in turn as DomainBed does.

    Args:
        images: uint8 (N, 28, 28), shuffled.
        digits: (N,).
    """
    for number, angle in enumerate(ANGLES):
        for image, digit in zip(images[number :: len(ANGLES)], digits[number :: len(ANGLES)], strict=True):
            yield angle, int(digit), rotated(image, int(angle))


def make_colored(
    images: np.ndarray, digits: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[str, int, Image.Image]]:
    """ColoredMNIST: each image with its domain and class, dealt to the domains in turn as DomainBed does.

    Args:
        images: uint8 (N, 28, 28), shuffled.
        digits: (N,).
        random: draws the flips.
    """
    for number, domain in enumerate(COLOUR_FLIPS):
        labels = noisy_labels(digits[number :: len(COLOUR_FLIPS)], random)
        channels = colours(labels, domain, random)
        for image, label, channel in zip(images[number :: len(COLOUR_FLIPS)], labels, channels, strict=True):
            yield domain, int(label), painted(image, int(channel))
