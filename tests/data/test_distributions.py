"""The distributions of crops, flips and colours against torchvision's own transforms, which draw otherwise.

Seeded, so the outcome is fixed. With N = 4,000 draws on each side and the level 1e-3, a Kolmogorov-Smirnov test of two
samples finds a shift of a distribution function by 0.06 with power above 0.9 (it rejects from 1.95 sqrt(2 / N) = 0.044
on; the distance's standard deviation is below 0.011), and the binomial test of a share of 0.5 finds 0.46 or 0.54 with
power 0.96 (it rejects from 3.29 sqrt(0.25 / N) = 0.026 on, its deviation is 0.0079). `test_the_tests_can_fail`
holds both to it.
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms

from ratfast.data import Augmentation
from ratfast.data.augmentation import draw_augmentation
from ratfast.data.backend import open_backend

COUNT = 4000
LEVEL = 1e-3
SIZES = [(375, 500), (227, 227), (640, 200), (90, 400)]  # height, width; the last two often need the fallback


def ours(augmentation, count=COUNT, seed=1):
    return draw_augmentation(augmentation, seed, 0, count)


def crops(augmentation, height, width):
    draws = ours(augmentation)
    return np.array([draws.box(row, height, width) for row in range(COUNT)])


def official_crops(height, width):
    torch.manual_seed(5)
    image = torch.empty(3, height, width)
    get = transforms.RandomResizedCrop.get_params
    return np.array([get(image, [0.7, 1.0], [3 / 4, 4 / 3]) for _ in range(COUNT)])


def described(boxes, height, width):
    """Area and aspect of crops, and where they lie as a share of where they could."""
    top, left, h, w = boxes.T
    return {
        "area": h * w / (height * width),
        "aspect": w / h,
        "top": top / np.maximum(height - h, 1),
        "left": left / np.maximum(width - w, 1),
    }


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops(height, width):
    found = described(crops(Augmentation(), height, width), height, width)
    expected = described(official_crops(height, width), height, width)
    for name in found:
        assert stats.ks_2samp(found[name], expected[name]).pvalue > LEVEL, name


def test_flips_and_grayscale():
    draws = ours(Augmentation())
    assert stats.binomtest(int(draws.flip.sum()), COUNT, 0.5).pvalue > LEVEL
    assert stats.binomtest(int(draws.grayscale.sum()), COUNT, 0.1).pvalue > LEVEL


def test_factors():
    torch.manual_seed(6)
    jitter = transforms.ColorJitter(0.3, 0.3, 0.3, 0.3)
    drawn = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:]
        for _ in range(COUNT)
    ]
    draws = ours(Augmentation())
    for name, expected in zip(
        ("brightness", "contrast", "saturation", "hue"), np.array(drawn).T, strict=True
    ):
        assert stats.ks_2samp(getattr(draws, name), expected).pvalue > LEVEL, name


def test_draws_are_independent():
    draws = ours(Augmentation())
    numbers = [draws.flip, draws.brightness, draws.contrast, draws.saturation, draws.hue, draws.grayscale]
    numbers += list(crops(Augmentation(), 375, 500).T[2:])
    correlations = np.corrcoef(np.array(numbers, float))[np.triu_indices(len(numbers), 1)]
    # Height and width of a crop hang together, as they must; the other 27 pairs do not.
    assert (np.abs(correlations[:-1]) < stats.norm.isf(LEVEL / 27 / 2) / np.sqrt(COUNT)).all()


def test_channel_statistics(formats):
    """Means and deviations of whole transformed photographs. torchvision shuffles the colour operations; over many
    images that moves these moments by less than the tolerance of half a level of 255 per standard error of 3."""
    picture = Image.open(formats["rgb.jpg"]).convert("RGB").resize((80, 53))
    pixels = torch.from_numpy(np.array(picture))
    count, augmentation = 600, Augmentation()
    backend = open_backend("torchvision", image_size=32, max_batch=count, threads=2)
    found = backend.augment_decoded([pixels] * count, ours(augmentation, count)).flatten(2)
    backend.close()
    torch.manual_seed(7)
    official = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
        ]
    )
    expected = torch.stack([official(picture) for _ in range(count)]).flatten(2)
    for moment in (lambda images: images.mean(2), lambda images: images.std(2)):
        one, other = moment(found), moment(expected)
        error = torch.sqrt((one.var(0) + other.var(0)) / count)
        assert ((one.mean(0) - other.mean(0)).abs() < 4 * error + 0.5 / 255).all()


@pytest.mark.parametrize(
    ("change", "height", "width", "name"),
    [({"scale": (0.66, 1.0)}, 375, 500, "area"), ({"ratio": (3 / 4, 1.3)}, 375, 500, "aspect")],
)
def test_the_tests_can_fail(change, height, width, name):
    wrong = described(crops(dataclasses.replace(Augmentation(), **change), height, width), height, width)
    expected = described(official_crops(height, width), height, width)
    assert stats.ks_2samp(wrong[name], expected[name]).pvalue < LEVEL
    flips = ours(dataclasses.replace(Augmentation(), flip=0.55)).flip
    assert stats.binomtest(int(flips.sum()), COUNT, 0.5).pvalue < LEVEL
