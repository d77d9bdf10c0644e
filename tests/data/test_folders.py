import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from ratfast.data import scan
from ratfast.errors import InputError


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def same_as_image_folder(root: Path) -> None:
    dataset = scan(root)
    assert list(dataset.domain_names) == sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    for domain in dataset.domains:
        expected = ImageFolder(root / domain.name)
        assert list(dataset.classes) == expected.classes
        assert list(zip(domain.paths, domain.labels.tolist(), strict=True)) == expected.samples
        assert domain.labels.dtype == np.int64


def test_order_of_an_ordinary_dataset(root):
    same_as_image_folder(root)
    assert scan(root).name == "Pictures"
    assert len(scan(root)) == 30
    assert scan(root, "PACS").name == "PACS"


def test_order_with_awkward_names(tmp_path):
    for domain in ("b", "A", "10", "9", ".hidden"):
        for label in ("z", "Zebra", "a b", "é"):
            for name in (
                "2.JPG",
                "10.jpeg",
                "b.Png",
                "a.webp",
                "n.txt",
                "deep/1.tif",
                "deep/er/0.bmp",
                "Deep/x.PPM",
                "x.gif",
            ):
                touch(tmp_path / domain / label / name)
    touch(tmp_path / "readme.txt")
    same_as_image_folder(tmp_path)


def test_links_are_followed(tmp_path):
    touch(tmp_path / "elsewhere" / "sub" / "1.jpg")
    touch(tmp_path / "data" / "d" / "c" / "0.jpg")
    (tmp_path / "data" / "d" / "c" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "e").symlink_to(tmp_path / "data" / "d")
    same_as_image_folder(tmp_path / "data")
    assert len(scan(tmp_path / "data")) == 4


names = st.text("abXYZ019._- ", min_size=1, max_size=4).filter(lambda name: name.strip(".") != "")


@settings(max_examples=25, deadline=None)
@given(
    labels=st.sets(names, min_size=1, max_size=3),
    domains=st.sets(names, min_size=1, max_size=3),
    files=st.sets(names, min_size=1, max_size=4),
)
def test_order_of_any_names(tmp_path_factory, labels, domains, files):
    folder = tmp_path_factory.mktemp("any")
    for domain in domains:
        for label in labels:
            for file in files:
                touch(folder / domain / label / f"{file}.jpg")
    same_as_image_folder(folder)


def test_domains_by_number_and_name(root):
    dataset = scan(root)
    assert [dataset.domain_index(d) for d in (0, "2", "photo", np.int64(1))] == [0, 2, 1, 1]
    for wrong in (3, -1, "3", "Photo"):
        with pytest.raises(InputError, match="0 art, 1 photo, 2 sketch"):
            dataset.domain_index(wrong)


def test_one_domain_is_listed_but_cannot_be_held_out(tmp_path):
    touch(tmp_path / "only" / "c" / "1.jpg")
    dataset = scan(tmp_path)
    with pytest.raises(InputError, match="only"):
        dataset.require_several_domains()


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*does not exist"):
        scan(tmp_path / "nowhere")
    touch(tmp_path / "file")
    with pytest.raises(InputError, match="is a file"):
        scan(tmp_path / "file")


def test_no_domains(tmp_path):
    touch(tmp_path / "1.jpg")
    with pytest.raises(InputError, match="holds no domains"):
        scan(tmp_path)


def test_domain_without_classes(tmp_path):
    touch(tmp_path / "d" / "1.jpg")
    with pytest.raises(InputError, match="/d holds no class folders"):
        scan(tmp_path)


def test_classes_that_differ_are_named(tmp_path):
    for path in ("a/cat/1.jpg", "a/dog/1.jpg", "b/cat/1.jpg", "b/cow/1.jpg"):
        touch(tmp_path / path)
    with pytest.raises(InputError, match="'b' lacks 'dog' and 'a' lacks 'cow'"):
        scan(tmp_path)


def test_empty_class(tmp_path):
    for path in ("a/cat/1.jpg", "a/dog/notes.txt"):
        touch(tmp_path / path)
    with pytest.raises(InputError, match="a/dog holds no images"):
        scan(tmp_path)


def test_listing_does_not_import_torch():
    code = "import sys; import ratfast.protocol; from ratfast.data import scan; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
