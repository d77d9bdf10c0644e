import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from ratfast.data import Augmentation
from ratfast.data.augmentation import CROP_ATTEMPTS, crop_box, draw_augmentation, draw_samples
from ratfast.errors import InputError

ARRAYS = ("crops", "flip", "brightness", "contrast", "saturation", "hue", "grayscale")


def test_a_step_is_reproducible_without_those_before_it():
    first, again, other = (draw_augmentation(Augmentation(), 7, step, 12) for step in (41, 41, 42))
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.crops, other.crops)
    assert not np.array_equal(first.crops, draw_augmentation(Augmentation(), 8, 41, 12).crops)
    assert np.array_equal(draw_samples(7, 41, [50, 60], 8), draw_samples(7, 41, [50, 60], 8))
    assert not np.array_equal(draw_samples(7, 41, [50, 60], 8), draw_samples(7, 42, [50, 60], 8))


def test_an_images_draws_do_not_depend_on_how_many_follow():
    few, many = (draw_augmentation(Augmentation(), 3, 5, count) for count in (4, 9))
    for name in ARRAYS:
        assert np.array_equal(getattr(few, name), getattr(many, name)[:4])


def test_samples_do_not_depend_on_the_augmentation_and_repeat():
    rows = draw_samples(0, 0, [3, 1000], 64)
    assert rows.shape == (2, 64) and rows.dtype == np.int64
    assert set(rows[0].tolist()) == {0, 1, 2}  # drawn with replacement
    assert rows.min() >= 0 and rows[1].max() < 1000


def test_samples_are_uniform():
    counts = np.bincount(
        np.concatenate([draw_samples(1, step, [10], 32)[0] for step in range(500)]), minlength=10
    )
    # chi-squared with 9 degrees of freedom: 27.9 is its 0.999 quantile
    assert ((counts - 1600) ** 2 / 1600).sum() < 27.9


def test_factors_have_the_papers_ranges():
    draws = draw_augmentation(Augmentation(), 0, 0, 4000)
    for name in ("brightness", "contrast", "saturation"):
        values = getattr(draws, name)
        assert abs(values.min() - 0.7) < 0.005 and abs(values.max() - 1.3) < 0.005
        assert values.dtype == np.float32
    assert abs(draws.hue.min() + 0.3) < 0.005 and abs(draws.hue.max() - 0.3) < 0.005
    assert abs(draws.flip.mean() - 0.5) < 0.03
    assert abs(draws.grayscale.mean() - 0.1) < 0.02


def test_factors_stop_at_zero():
    draws = draw_augmentation(Augmentation(contrast=2.0), 0, 0, 1000)
    assert draws.contrast.min() >= 0 and draws.contrast.max() > 2.9


class Replay:
    """Feeds given uniform numbers to torchvision's algorithm, in place of torch's generator."""

    def __init__(self, attempts):
        self.attempts = iter(attempts.tolist())
        self.values = iter(())
        self.calls = 0

    def uniform(self, low, high):
        if self.calls % 2 == 0:  # area, the first number of a new attempt
            self.values = iter(next(self.attempts))
        self.calls += 1
        low, high = float(low), float(high)
        return torch.tensor([low + next(self.values) * (high - low)], dtype=torch.float64)

    def randint(self, low, high, size):
        return torch.tensor([low + int(next(self.values) * (high - low))])


def test_crops_are_torchvisions(monkeypatch):
    """The same uniform numbers put into torchvision's own algorithm give the same boxes."""
    draws = draw_augmentation(Augmentation(), 0, 0, 300)
    rng = np.random.default_rng(0)
    central = 0
    for row in range(300):
        height, width = (int(n) for n in rng.integers(1, 60, 2) ** 2)
        replay = Replay(draws.crops[row])
        with monkeypatch.context() as patch:
            patch.setattr(
                torch.Tensor, "uniform_", lambda _, low, high, replay=replay: replay.uniform(low, high)
            )
            patch.setattr(torch, "randint", replay.randint)
            expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.7, 1.0], [3 / 4, 4 / 3])
        central += replay.calls == 2 * CROP_ATTEMPTS
        # torchvision takes the logarithms of the ratios in float32, so a side may round the other way.
        assert np.abs(np.subtract(draws.box(row, height, width), expected)).max() <= 1, (height, width)
    assert 30 < central < 270  # both the random and the central crops were met


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), seed=st.integers(0, 10_000))
def test_crops_lie_inside(height, width, seed):
    uniform = np.random.default_rng(seed).random((CROP_ATTEMPTS, 4))
    top, left, h, w = crop_box(uniform, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
    assert min(top, left) >= 0 and min(h, w) > 0 and top + h <= height and left + w <= width


def test_no_augmentation_takes_images_whole():
    draws = draw_augmentation(None, 0, 0, 3)
    assert draws.box(2, 50, 70) == (0, 0, 50, 70)
    assert not draws.flip.any() and draws.colour_operations == ()


def test_operations_come_in_order_and_only_where_asked_for():
    assert Augmentation().colour_operations == ("brightness", "contrast", "saturation", "hue", "grayscale")
    assert Augmentation(contrast=0, hue=0).colour_operations == ("brightness", "saturation", "grayscale")


@pytest.mark.parametrize(
    "values",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.5)},
        {"ratio": (0.0, 1.0)},
        {"flip": 1.5},
        {"hue": 0.6},
        {"brightness": -0.1},
        {"grayscale": float("nan")},
    ],
)
def test_values_out_of_range(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Augmentation(**values)
