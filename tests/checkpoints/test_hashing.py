"""SHA-256 of files against hashlib, with and without the native module."""

import hashlib
import mmap
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from ratfast import native
from ratfast.checkpoints import hashing, sha256, sha256_files, sha256_streams
from ratfast.errors import InputError


@pytest.fixture(params=["as it is", "without the native module"], autouse=True)
def streams(request, monkeypatch):
    if request.param == "without the native module":
        monkeypatch.setattr(native, "load_core", lambda: None)
        assert isinstance(sha256_streams(1), hashing._HashlibStreams)


@pytest.fixture
def files(tmp_path):
    """Files of very different sizes, and their digests."""
    sizes = (0, 1, 4096, 4095, 1_000_000, 64, 3_000_001, 12_288, 70_000)
    paths = []
    for n, size in enumerate(sizes):
        paths.append(tmp_path / f"{n}")
        paths[-1].write_bytes(np.random.default_rng(n).bytes(size))
    return paths, [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("round_bytes", [hashing._ROUND_BYTES, 300_000])
@pytest.mark.parametrize("at_a_time", [hashing._FILES, 2])
def test_files(files, threads, round_bytes, at_a_time, monkeypatch):
    monkeypatch.setattr(hashing, "_ROUND_BYTES", round_bytes)
    monkeypatch.setattr(hashing, "_FILES", at_a_time)
    paths, wanted = files
    assert sha256_files(paths, threads) == wanted
    assert sha256_files([str(path) for path in paths], threads) == wanted
    assert [sha256(path) for path in paths] == wanted
    assert sha256_files([], threads) == []


def test_mapped_already(files, monkeypatch):
    monkeypatch.setattr(hashing, "_ROUND_BYTES", 300_000)
    paths, wanted = files
    contents = [np.fromfile(path, np.uint8) for path in paths[:3]]
    contents += [np.memmap(path, np.uint8, "r") for path in paths[3:5]]
    with open(paths[5], "rb") as file:
        contents.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    contents += [memoryview(paths[6].read_bytes()), *paths[7:]]
    before = [bytes(content) for content in contents[:7]]
    assert sha256_files(contents, 2) == wanted
    assert [bytes(content) for content in contents[:7]] == before


def test_more_files_than_may_be_open(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "from ratfast.checkpoints import sha256_files\n"
        "print(*set(sha256_files([sys.argv[1]] * 500, 2)))"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [hashlib.sha256(b"abc").hexdigest()]


def test_given_up(files, monkeypatch):
    monkeypatch.setattr(hashing, "_ROUND_BYTES", 300_000)
    paths, wanted = files
    answers = iter([False, False, True])
    with pytest.raises(InterruptedError):
        sha256_files(paths, 2, lambda: next(answers))
    assert next(answers, "none left") == "none left"
    assert sha256_files(paths, 2, lambda: False) == wanted


def test_bad_input(files, tmp_path):
    paths, _ = files
    for bad in (tmp_path / "none", tmp_path, "a\0b"):
        with pytest.raises(InputError):
            sha256_files([*paths, bad], 2)
        with pytest.raises(InputError):
            sha256(bad)
    with pytest.raises(ValueError, match="contiguous bytes"):
        sha256_files([np.zeros(4, np.float32)], 1)


def test_pipe(tmp_path):
    """Not a regular file: it has no size and cannot be mapped."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(b"x" * 100_000))
    writer.start()
    assert sha256(path) == hashlib.sha256(b"x" * 100_000).hexdigest()
    writer.join()
