"""Files appear complete or not at all."""

import os
import stat
import subprocess
import sys

import pytest
import torch

from ratfast import checkpoints
from ratfast.errors import InputError


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with checkpoints.atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_success_replaces(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with checkpoints.atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with checkpoints.atomic_file(tmp_path / "a"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_links_are_followed(tmp_path):
    (tmp_path / "b").write_bytes(b"old")
    (tmp_path / "a").symlink_to("b")
    with checkpoints.atomic_file(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").read_bytes() == b"new"


def test_long_names(tmp_path):
    name = "a" * 250
    checkpoints.save({}, tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["missing/a", ".", "file/a"])
def test_impossible_places(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be"), checkpoints.atomic_file(tmp_path / name):
        pass


def test_devices_are_not_replaced():
    with pytest.raises(InputError, match="not an ordinary file"), checkpoints.atomic_file("/dev/null"):
        pass


FULL = """
import resource, sys, torch
from ratfast import checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # the limit acts as a full disk does
try:
    checkpoints.save({"a": torch.zeros(1 << 20)}, sys.argv[1])
except OSError as error:
    print(type(error).__name__, error)
"""


def test_full_disk(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoints.save({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OSError") and str(path) in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_empty_name():
    with pytest.raises(InputError, match="name of the file to write is empty"), checkpoints.atomic_file(""):
        pass
