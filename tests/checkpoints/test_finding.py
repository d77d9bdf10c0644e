"""From what a user names to checkpoint files."""

import pytest

from ratfast.checkpoints import find_checkpoints
from ratfast.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in (
        "run10.pt",
        "run2.pt",
        "run1.safetensors",
        "note.txt",
        ".hidden.pt",
        "sub/run3.pth.tar",
        "empty/x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(folder, *patterns):
    return [
        str(path.relative_to(folder)) for path in find_checkpoints([folder / pattern for pattern in patterns])
    ]


def test_folders_files_and_patterns(folder):
    assert names(folder, "") == ["run1.safetensors", "run2.pt", "run10.pt"]
    assert names(folder, "*.pt") == ["run2.pt", "run10.pt"]
    assert names(folder, "**/*.p*") == ["run2.pt", "run10.pt", "sub/run3.pth.tar"]
    assert names(folder, "run10.pt", "run2.pt", "note.txt") == ["run10.pt", "run2.pt", "note.txt"]
    assert names(folder, "sub", "run2.pt", "run2.pt") == ["sub/run3.pth.tar", "run2.pt", "run2.pt"]
    assert (
        find_checkpoints(str(folder / "run2.pt"))
        == find_checkpoints(folder / "run2.pt")
        == [folder / "run2.pt"]
    )


def test_a_name_with_signs_of_patterns(folder):
    (folder / "a[1].pt").touch()
    assert names(folder, "a[1].pt") == ["a[1].pt"]


def test_an_index_stands_for_its_folder(folder):
    for name in (
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "model-00001-of-00002.safetensors",
    ):
        (folder / name).touch()
    assert names(folder, "") == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("none.pt", "none.pt does not exist"), ("none*", "matches no file"), ("empty", "holds no checkpoint")],
)
def test_nothing_is_meant(folder, pattern, reason):
    with pytest.raises(InputError, match=reason):
        names(folder, "run2.pt", pattern)


def test_shards_without_their_index(folder):
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(InputError, match="shards of a checkpoint without"):
        names(folder, "")


def test_an_empty_name_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the name of a checkpoint is empty"):
        find_checkpoints(["a.safetensors", ""])
