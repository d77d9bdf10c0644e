import itertools
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from ratfast.data import Augmentation, build_loader, scan
from ratfast.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(root, backend="torchvision", indices=None, **options):
    dataset = scan(root)
    indices = indices or {0: np.arange(8), 2: np.array([1, 5, 9])}
    settings = {
        "batch_size": 4,
        "image_size": 32,
        "mean": MEAN,
        "std": STD,
        "seed": 3,
        "threads": 1,
    } | options
    return build_loader(dataset, indices, backend=backend, **settings)


def background():
    return {t.name for t in threading.enumerate() if t.name.startswith("ratfast")}


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_batches(root, backend_name):
    with make(root, backend_name) as loader:
        assert loader.backend == backend_name
        batch = loader.batch_at(0)
        assert batch.images.shape == (8, 3, 32, 32) and batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.shape == (8,) and batch.labels.dtype == torch.int64
    assert not background()


def test_any_step_is_reproducible(root, backend_name):
    with make(root, backend_name) as loader:
        expected = [loader.batch_at(step) for step in range(4)]
        assert not same(expected[0], expected[1])
        assert same(loader.batch_at(2), expected[2])
        for start in (0, 2):
            for step, batch in zip(range(start, 4), loader.batches(start), strict=False):
                assert same(batch, expected[step])
    with make(root, backend_name) as again, make(root, backend_name, seed=4) as other:
        assert same(again.batch_at(3), expected[3])
        assert not same(other.batch_at(3), expected[3])


def test_labels_belong_to_images_and_only_given_samples_come(root):
    dataset = scan(root)
    indices = {0: np.array([0, 3, 6]), 1: np.array([2, 9])}
    with make(root, indices=indices, augmentation=None, mean=(0, 0, 0), std=(1, 1, 1)) as loader:
        allowed = []
        for number, rows in indices.items():
            domain = dataset.domains[number]
            # One image at a time through a loader of its own
            for row in rows:
                with make(
                    root,
                    indices={number: np.array([row])},
                    augmentation=None,
                    batch_size=1,
                    mean=(0, 0, 0),
                    std=(1, 1, 1),
                ) as single:
                    allowed.append((number, single.batch_at(0).images[0], int(domain.labels[row])))
        seen = set()
        for step in range(6):
            batch = loader.batch_at(step)
            for position, (image, label) in enumerate(zip(*batch, strict=True)):
                domain = 0 if position < 4 else 1
                matches = [
                    i
                    for i, (d, a, y) in enumerate(allowed)
                    if d == domain and torch.equal(a, image) and y == label
                ]
                assert len(matches) == 1
                seen |= set(matches)
        assert seen == set(range(5))


def test_iteration_ends(root):
    with make(root) as loader:
        assert sum(1 for _ in loader.batches(2, 7)) == 5
        assert list(loader.batches(3, 3)) == []
        assert len(list(itertools.islice(loader, 3))) == 3


def test_leaving_the_loop_stops_the_thread(root):
    with make(root) as loader:
        for _ in loader:
            assert "ratfast-prefetch" in background()
            break
        deadline = time.monotonic() + 5
        while "ratfast-prefetch" in background() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "ratfast-prefetch" not in background()


def test_closing_in_the_middle(root):
    loader = make(root)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    loader.close()
    assert list(itertools.islice(iterator, 10)) == []
    assert not background()
    with pytest.raises(RuntimeError, match="closed"):
        loader.batch_at(0)


def test_prefetching_is_bounded(root, monkeypatch):
    loader = make(root, prefetch=2)
    made = []
    original = loader._make
    monkeypatch.setattr(loader, "_make", lambda step, reading: made.append(step) or original(step, reading))
    iterator = iter(loader)
    next(iterator)
    time.sleep(0.5)
    assert max(made) <= 4  # one consumed, two queued, one waiting to be queued
    loader.close()


def test_a_bad_file_is_named_and_ends_the_iteration(root, backend_name, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    dataset = scan(copy)
    victim = dataset.domains[0].paths[0]
    with open(victim, "r+b") as file:
        file.truncate(300)
    with make(copy, backend_name, indices={0: np.array([0])}) as loader:
        with pytest.raises(InputError, match="cut off"):
            loader.batch_at(0)
        iterator = iter(loader)
        with pytest.raises(InputError, match=victim):
            next(iterator)
        assert list(iterator) == []
    assert not background()


def test_no_augmentation_is_the_evaluation_resize(root, backend_name):
    from ratfast.data import decode

    dataset = scan(root)
    with make(root, backend_name, indices={1: np.array([4])}, augmentation=None, batch_size=1) as loader:
        image = loader.batch_at(0).images[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    expected = decode([dataset.domains[1].paths[4]], 32, backend=backend_name)[0]
    torch.testing.assert_close((image * std + mean) * 255, expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"indices": {5: np.arange(2)}}, "no domain 5"),
        ({"indices": {0: np.array([], int)}}, "'art'.*no images to train on"),
        ({"indices": {0: np.array([3, 10])}}, "images 0 to 9, but image 10"),
        ({"indices": {0: np.array([-1, 4])}}, "but image -1"),
        ({"backend": "pil"}, "unknown image backend"),
        ({"image_size": 0}, "at least 1"),
    ],
)
def test_bad_input(root, options, complaint):
    with pytest.raises(InputError, match=complaint):
        make(root, **options)
    with pytest.raises(InputError, match="no domain"):
        build_loader(scan(root), {}, batch_size=1, image_size=8, mean=MEAN, std=STD, seed=0)


def test_negative_step(root):
    with make(root) as loader, pytest.raises(InputError, match="-1"):
        loader.batch_at(-1)


@pytest.mark.cuda
def test_on_cuda(root, backend_name, cuda):
    with make(root, backend_name, device=cuda, augmentation=Augmentation()) as loader:
        stream = torch.cuda.Stream()
        expected = loader.batch_at(1)
        with torch.cuda.stream(stream):
            for step, batch in enumerate(loader.batches(0, 3)):
                assert batch.images.device == cuda and batch.labels.device == cuda
                if step == 1:
                    assert same(batch, expected)
