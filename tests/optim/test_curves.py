"""Whole trainings on real digits: the losses of torch's optimizers, step by step."""

import pytest
import torch
import training_curves

from ratfast import models

STEPS = 12


@pytest.fixture(scope="module")
def digits():
    """Batches of scikit-learn's optdigits, enlarged, in colours by three."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).reshape(-1, 1, 8, 8).double() / 16 - 0.3
    pixels = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [
        (pixels[chosen].contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)[chosen])
        for chosen in order[: 8 * STEPS].split(8)
    ]


def test_the_curve_is_torchs_in_float64(digits):
    """There rounding has no time to grow: all losses agree to nine digits."""
    torch.manual_seed(0)
    model = models.build("resnet18", 10, weights=None, image_size=16).double()
    model = model.to(memory_format=torch.channels_last)
    names = ["torch-loop", "ratfast-list", "ratfast-arena"]
    curves = {name: training_curves.curve(model, name, digits) for name in names}
    for name in names[1:]:
        assert training_curves.distance(curves[name], curves["torch-loop"]) < 1e-9
    assert min(curves["torch-loop"]) < curves["torch-loop"][0] - 0.02


def test_the_curve_is_as_near_as_torchs_own_in_float32(digits):
    """The losses part by rounding, as those of torch's implementations do from each other."""
    batches = [(images.float(), labels) for images, labels in digits]
    torch.manual_seed(0)
    model = models.build("resnet18", 10, weights=None, image_size=16).to(memory_format=torch.channels_last)
    names = ["torch-loop", "torch-foreach", "torch-fused", "ratfast-list", "ratfast-arena"]
    curves = {name: training_curves.curve(model, name, batches) for name in names}
    loop = curves.pop("torch-loop")
    distances = {name: training_curves.distance(losses, loop) for name, losses in curves.items()}
    theirs = max(distances["torch-foreach"], distances["torch-fused"])
    assert max(distances["ratfast-list"], distances["ratfast-arena"]) <= 4 * theirs + 1e-4, distances
    assert curves["ratfast-list"] == curves["ratfast-arena"]
