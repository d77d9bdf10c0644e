import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ratfast.data import Augmentation, TrainingCache, build_loader, scan
from ratfast.data import loader as module
from ratfast.data.augmentation import draw_augmentation
from ratfast.errors import InputError


def make(root, cache, **options):
    settings = {
        "batch_size": 6,
        "image_size": 32,
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "seed": 3,
        "threads": 2,
    }
    indices = {0: np.arange(10), 1: np.arange(5)}
    return build_loader(scan(root), indices, cache=cache, **settings | options)


def batches(root, cache, count=4, **options):
    with make(root, cache, **options) as loader:
        return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.fixture
def reads(monkeypatch):
    """The files read."""
    found = []
    original = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: found.append(path) or original(path))
    return found


def test_images_that_are_small_enough_stay_as_they_are(root, backend_name):
    plain = batches(root, None, backend=backend_name)
    for one, other in zip(plain, batches(root, TrainingCache(1000), backend=backend_name), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_each_file_is_read_once(root, reads):
    cache = TrainingCache(40)
    batches(root, cache, 40)
    assert len(reads) <= len(set(reads)) + 2 * 12  # of a batch read ahead, some may be in the one being made
    assert len(cache) == len(set(reads)) == 15
    reads.clear()
    batches(root, cache, 40, seed=4)
    assert not reads
    cache.clear()
    assert len(cache) == cache.nbytes == 0


@pytest.mark.parametrize("max_bytes", [0, 20_000, None])
def test_what_it_makes_does_not_depend_on_what_it_holds(root, reads, max_bytes):
    expected = batches(root, TrainingCache(30))
    cache = TrainingCache(30, max_bytes=max_bytes)
    for _ in range(2):
        for one, other in zip(batches(root, cache), expected, strict=True):
            assert torch.equal(one.images, other.images)
    assert cache.nbytes == sum(cache.get(path).numel() for path in set(reads) if cache.get(path) is not None)
    assert max_bytes is None or cache.nbytes <= max_bytes
    assert (len(cache) == 0) == (max_bytes == 0)


def test_the_crop_is_of_the_smaller_image(root):
    """As torchvision would: Resize(side), then the crop, then the rest."""
    path = scan(root).domains[0].paths[0]
    augmentation = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, grayscale=0)
    options = {"indices": {0: np.array([0])}, "batch_size": 1}
    settings = {"image_size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), "seed": 3, "threads": 1}
    small = transforms.Resize(30)(Image.open(path).convert("RGB"))
    with build_loader(
        scan(root), augmentation=augmentation, cache=TrainingCache(30), **options, **settings
    ) as loader:
        for step in range(5):
            draws = draw_augmentation(augmentation, 3, step, 1)
            expected = transforms.functional.resized_crop(
                small, *draws.box(0, small.height, small.width), [32, 32]
            )
            if draws.flip[0]:
                expected = transforms.functional.hflip(expected)
            found = loader.batch_at(step).images[0].permute(1, 2, 0) * 255
            assert np.abs(found.numpy() - np.asarray(expected)).max() < 1e-3


def test_bad_numbers():
    with pytest.raises(InputError, match="side must be at least 1"):
        TrainingCache(0)
    with pytest.raises(InputError, match="must not be negative"):
        TrainingCache(8, max_bytes=-1)


@pytest.mark.cuda
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_on_cuda(root, cuda, place):
    expected = batches(root, TrainingCache(30), backend="torchvision")
    cache = TrainingCache(30, device=cuda if place == "cuda" else "cpu")
    for _ in range(2):
        found = batches(root, cache, device=cuda, backend="torchvision", dtype=torch.float32)
        for one, other in zip(found, expected, strict=True):
            assert one.images.device == cuda and torch.equal(one.images.cpu(), other.images)
