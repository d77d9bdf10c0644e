"""Accuracy on decoded images: the one place where it is computed, for training, averages and `ratfast evaluate`.

Batch normalisation is folded into the convolutions, once for an evaluation: alike everywhere, so that a network has
one accuracy wherever it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ratfast.data import DecodedImages
from ratfast.image_ops import normalise_images_, scale_and_shift
from ratfast.models import Classifier
from ratfast.models.folding import folded_once

BATCH_SIZE = 128
"""Images per forward pass. Fixed: another size may take other kernels, whose rounding can flip a prediction."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The mixed-precision context of training and evaluation: bfloat16, or nothing for `"float32"`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def normalised(
    images: Tensor, model: Classifier, dtype: torch.dtype = torch.float32, room: Tensor | None = None
) -> Tensor:
    """Brings decoded images to the model's input, in the numbers that a training loader makes.

    Args:
        images: `(N, 3, S, S)` uint8, any memory format; channels-last needs no copy.
        model: whose `normalisation` (mean and standard deviation per channel of images in [0, 1]) is used.
        dtype: float32 or bfloat16.
        room: the result of an earlier call with at least as many images of this size, to be written over.

    Returns:
        `(N, 3, S, S)`, channels-last.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous()
    if room is None:
        out = torch.empty(pixels.shape, dtype=dtype, device=images.device)
    else:
        out = room[: len(images)].permute(0, 2, 3, 1)
    scale_shift = scale_and_shift(model.normalisation.mean, model.normalisation.std)
    normalise_images_(out, pixels, *scale_shift, threads=torch.get_num_threads())
    return out.permute(0, 3, 1, 2)


def input_dtype(precision: str) -> torch.dtype:
    """What images are made in for a model that runs in `precision`."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@contextmanager
def evaluating(model: Classifier, device: torch.device, precision: str) -> Iterator[None]:
    """A block in which features are computed for an evaluation; weights must not change within."""
    featurizer = model.featurizer
    with torch.no_grad(), autocast(device, precision), folded_once(featurizer, featurizer.pairs):
        yield


def extract_features(
    model: Classifier,
    images: Tensor | DecodedImages,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of decoded images.

    Args:
        model: in evaluation mode.
        images: `(N, 3, S, S)` uint8, on the model's device or on the CPU, or what hands out batches of them.
        precision: `"float32"` or `"bfloat16"`.
        progress: called with the number of images done so far and their number in all.

    Returns:
        `(N, D)` on the model's device.
    """
    features = []
    device = next(model.parameters()).device
    with evaluating(model, device, precision):
        room = None  # of the first batch, for all: the page faults of new memory cost more than filling it
        for number, batch in enumerate(images.split(BATCH_SIZE), 1):
            batch = normalised(batch.to(device), model, input_dtype(precision), room)
            room = batch if room is None else room
            features.append(model.features(batch))
            if progress is not None:
                progress(min(number * BATCH_SIZE, len(images)), len(images))
    return torch.cat(features)


@torch.no_grad()
def logits(model: Classifier, features: Tensor, precision: str) -> Tensor:
    """Logits `(N, C)` of features `(N, D)`.

    Args:
        model: in evaluation mode.
        features: from `extract_features`.
        precision: `"float32"` or `"bfloat16"`.
    """
    with autocast(features.device, precision):
        return torch.cat([model.head(batch) for batch in features.split(BATCH_SIZE)])


def correct_mask(
    model: Classifier,
    images: Tensor | DecodedImages,
    labels: Tensor,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Which decoded images `model` classifies right, `(N,)` bool; the model is left in its mode.

    Args:
        model: any mode.
        images: as in `extract_features`.
        labels: `(N,)` int64 on the model's device.
        precision: `"float32"` or `"bfloat16"`.
        progress: as in `extract_features`.
    """
    was_training = model.training
    model.eval()
    features = extract_features(model, images, precision, progress)
    correct = logits(model, features, precision).argmax(1) == labels
    model.train(was_training)
    return correct


def accuracy(
    model: Classifier,
    images: Tensor | DecodedImages,
    labels: Tensor,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Fraction of decoded images that `model` classifies right: `correct_mask` and its arguments."""
    correct = correct_mask(model, images, labels, precision, progress)
    return int(correct.sum()) / max(len(labels), 1)
