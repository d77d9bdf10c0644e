import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ratfast.data import Augmentation, TrainingCache, build_loader, scan
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


def digest(batches):
    """A digest of the next batches, images and labels."""
    found = hashlib.sha256()
    for batch in batches:
        found.update(batch.images.float().cpu().numpy().tobytes() + batch.labels.cpu().numpy().tobytes())
    return found.hexdigest()


def resume(root, device, state):
    """In another process: the digest of the 100 batches after a state."""
    code = (
        "import sys, json; sys.path.insert(0, 'tests/data'); import itertools, test_loader as t;"
        f"loader = t.make({str(root)!r}, image_size=24, device={str(device)!r}, threads=2);"
        f"loader.load_state_dict(json.loads({json.dumps(state)!r}));"
        "print(t.digest(itertools.islice(loader, 100))); loader.close()"
    )
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


def test_saved_in_the_middle_restored_in_another_process(root, device):
    with make(root, image_size=24, device=device) as loader:
        assert loader.state_dict() == {"seed": 3, "step": 0}
        iterator = iter(loader)
        for _ in range(7):
            next(iterator)
        state = loader.state_dict()
        assert state == {"seed": 3, "step": 7}
        expected = digest(itertools.islice(iterator, 100))
    assert resume(root, device, state) == expected


def test_state_of_another_seed(root):
    with make(root, seed=5) as one, make(root, seed=6) as other:
        next(iter(one))
        other.load_state_dict(one.state_dict())
        assert same(next(iter(other)), one.batch_at(1))


@pytest.mark.parametrize("state", [{}, {"seed": 1}, {"seed": 1, "step": "2"}, {"seed": 1, "step": -1}])
def test_bad_state(root, state):
    with make(root) as loader, pytest.raises(InputError, match=r"loader's st"):
        loader.load_state_dict(state)


def test_at_most_eight_threads(root, backend_name):
    """The caller's own one among them, and no process beside it; the pools of mathematical libraries do not count."""
    code = (
        "import sys; sys.path.insert(0, 'tests/data'); import os, torch, test_loader as t;"
        "torch.set_num_threads(1);"
        "count = lambda: len(os.listdir('/proc/self/task')); before = count() - 1;"
        f"loader = t.make({str(root)!r}, {backend_name!r}, threads=None);"
        "iterator = iter(loader); [next(iterator) for _ in range(5)];"
        "children = open(f'/proc/self/task/{os.getpid()}/children').read().split();"
        "print(count() - before, len(children)); loader.close()"
    )
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    threads, children = map(int, done.stdout.split()[-2:])
    assert threads <= 8 and children == 0


def test_two_runs_in_one_process_do_not_disturb_each_other(root):
    cache = TrainingCache(64)
    with make(root, seed=1) as alone:
        expected = [batch for batch, _ in zip(alone, range(4), strict=False)]
    with make(root, seed=1, cache=cache) as one, make(root, seed=2, cache=cache) as other:
        for batch, between, kept in zip(one, other, expected, strict=False):
            assert not same(batch, between)
            assert batch.images.shape == kept.images.shape and torch.equal(batch.labels, kept.labels)
        again = [one.batch_at(step) for step in range(4)]
    with make(root, seed=1, cache=TrainingCache(64)) as fresh:
        assert all(same(fresh.batch_at(step), batch) for step, batch in enumerate(again))


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
