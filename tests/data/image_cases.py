"""Random arguments of the image operator, for the tests of its implementations."""

import numpy as np
import torch

SCALE = torch.tensor([1 / 58.395, 1 / 57.12, 1 / 57.375])
SHIFT = torch.tensor([-2.1179, -2.0357, -1.8044])


def photograph_like(rng, height, width):
    """Blots of colour, with noise: greys, saturated colours and everything between."""
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    image = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width] + rng.normal(0, 25, (height, width, 3))
    image[: height // 4] = image[: height // 4].mean(2, keepdims=True)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def random_arguments(seed, count, longest=260, operations=None):
    """Images, boxes, flips, factors and operations for `transform_images_`."""
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for _ in range(count):
        height, width = rng.integers(1, longest, 2)
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        images.append(photograph_like(rng, height, width))
        boxes.append([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w])
    factors = np.c_[rng.uniform(0, 2, (count, 3)), rng.integers(0, 256, count)]
    chosen = rng.integers(0, 32, count) if operations is None else np.full(count, operations)
    return (
        images,
        torch.tensor(np.array(boxes, np.int64)),
        torch.tensor(rng.integers(0, 2, count)),
        torch.tensor(factors, dtype=torch.float32),
        torch.tensor(chosen),
    )
