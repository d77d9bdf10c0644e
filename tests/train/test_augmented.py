import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from ratfast import data
from ratfast.data.augmentation import Augmentation, draw_augmentation
from ratfast.data.backend import open_backend
from ratfast.data.files import read_image
from ratfast.train.augmented import AugmentedSplit

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for domain, number in itertools.product(("a", "b"), range(7)):
        path = tmp_path / domain / "class" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return data.scan(tmp_path)


@pytest.fixture
def loader(dataset):
    made = data.build_loader(
        dataset,
        {0: np.arange(7), 1: np.arange(5)},
        batch_size=2,
        image_size=16,
        mean=MEAN,
        std=STD,
        seed=1,
        threads=2,
        backend="torchvision",
        cache=data.TrainingCache(8),  # for training alone: these images are decoded as they are
    )
    with made:
        yield made


def test_every_image_once_augmented_by_draws_of_the_step(dataset, loader):
    paths = dataset.domains[1].paths
    split = AugmentedSplit(paths, loader, seed=5)
    found = list(split(3))
    assert [len(batch) for batch in found] == [4, 3]  # as many as the loader's own batches at most
    backend = open_backend("torchvision", image_size=16, max_batch=7, mean=MEAN, std=STD, threads=1)
    for number, batch in enumerate(found):
        images = [read_image(path) for path in paths[4 * number : 4 * number + 4]]
        draws = draw_augmentation(Augmentation(), 5, 3 + (number << 20), len(images))
        assert torch.equal(batch, backend.augment(images, draws))
    backend.close()
    assert torch.equal(torch.cat(found), torch.cat(list(split(3))))
    assert not torch.equal(torch.cat(found), torch.cat(list(split(4))))


def test_training_goes_on_as_if_nothing_had_been_made_between(dataset, loader):
    split = AugmentedSplit(dataset.domains[0].paths, loader, seed=5)
    expected = [loader.batch_at(step).images for step in range(4)]
    for step, batch in enumerate(loader.batches(0, 4)):
        assert torch.equal(batch.images, expected[step])
        list(split(step))
