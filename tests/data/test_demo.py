import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ratfast.data import check_images, demo, scan
from ratfast.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    start = time.monotonic()
    made = demo.prepare(tmp_path_factory.mktemp("cache") / "demo")
    assert time.monotonic() - start < 20
    return made


def test_datasets_are_as_described(folder):
    assert len(demo.TARGET.domains) >= 4
    for described in demo.DATASETS:
        dataset = scan(folder / described.name)
        assert (dataset.name, dataset.classes, dataset.domain_names) == (
            described.name,
            described.classes,
            described.domains,
        )
        assert [len(domain) for domain in dataset.domains] == [described.images_per_domain] * len(
            dataset.domains
        )
        for domain in dataset.domains:
            check_images(domain.paths)
    endings = {
        Path(path).suffix for domain in scan(folder / demo.TARGET.name).domains for path in domain.paths
    }
    assert endings == {".png", ".jpg", ".webp"}


def test_no_mnist_image_is_in_two_places(monkeypatch):
    """The transforms are replaced by the identity, so that an image can be recognised wherever it went."""
    places = {}

    def save(folder, ending, labels, images):
        for image in images:
            pixels = np.asarray(image.convert("RGB")).max(axis=2)
            places.setdefault(hashlib.sha256(pixels.tobytes()).hexdigest(), []).append(folder)

    monkeypatch.setattr(demo, "_save", save)
    monkeypatch.setattr(demo, "_outline", lambda image: image)
    monkeypatch.setattr(demo, "_on_photograph", lambda image, *_: image)
    monkeypatch.setattr(demo, "rotated", lambda image, _: Image.fromarray(image))
    monkeypatch.setattr(Path, "write_text", lambda *_: None)
    demo._write(Path("/nowhere"))
    count = sum(len(found) for found in places.values())
    assert count == sum(len(d.domains) * d.images_per_domain for d in demo.DATASETS)
    assert all(len(found) == 1 for found in places.values())


def test_classes_are_balanced_in_the_target(folder):
    for domain in scan(folder / demo.TARGET.name).domains:
        assert np.bincount(domain.labels).tolist() == [80] * 10


def test_colours_follow_the_labels_as_stated(folder):
    for domain in scan(folder / "ColoredMNIST").domains:
        green = np.array([np.asarray(Image.open(path))[:, :, 1].any() for path in domain.paths])
        red = np.array([np.asarray(Image.open(path))[:, :, 0].any() for path in domain.paths])
        assert (green != red).all()
        agree = (green == domain.labels.astype(bool)).mean()
        assert abs(agree - {"+90%": 0.9, "+80%": 0.8, "-90%": 0.1}[domain.name]) < 0.06


def test_a_second_call_changes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert demo.prepare(folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_default_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.default_folder() == tmp_path / "ratfast" / f"demo-v{demo.VERSION}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert demo.default_folder() == Path(f"/home/someone/.cache/ratfast/demo-v{demo.VERSION}")


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(root):
        (root / "half").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.prepare(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def write_little(root):
    (root / "image").write_text("x")
    (root / demo._MARK).write_text("{}")


def test_a_killed_preparation_is_cleaned_up_later(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_write", write_little)
    old, recent = tmp_path / ".demo-killed", tmp_path / ".demo-running"
    for leftover in (old, recent):
        leftover.mkdir()
    os.utime(old, (0, 0))
    demo.prepare(tmp_path / "demo")
    assert not old.exists() and recent.exists()


def test_another_process_was_first(tmp_path, monkeypatch):
    target = tmp_path / "demo"

    def overtaken(root):
        write_little(root)
        target.mkdir()
        write_little(target)

    monkeypatch.setattr(demo, "_write", overtaken)
    assert demo.prepare(target) == target
    assert list(tmp_path.iterdir()) == [target]


SLOW_WRITER = """
import sys, time
from ratfast.data import demo
def write(root):
    (root / "image").write_text("x")
    time.sleep(0.5)
    (root / demo._MARK).write_text("{}")
demo._write = write
demo.prepare(sys.argv[1])
"""


def test_concurrent_processes(tmp_path):
    command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path / "demo")]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [tmp_path / "demo"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["image", demo._MARK]


def test_a_killed_process_leaves_no_folder(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER.replace("0.5", "60"), str(tmp_path / "demo")]
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".demo-*/image")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.kill()
    running.wait()
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("module", "package"), [("mlxtend.data", "mlxtend"), ("sklearn.datasets", "scikit-learn")]
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=package) as caught:
        demo.prepare(tmp_path / "demo")
    assert 'pip install "ratfast[demo]"' in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="new or empty"):
        demo.prepare(tmp_path)
    with pytest.raises(InputError, match="new or empty"):
        demo.prepare(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match="cannot write"):
        demo.prepare(tmp_path / "thesis.tex" / "demo")
