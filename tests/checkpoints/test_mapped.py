"""Files as memory: more of them than the process may have open at first."""

import os
import resource

import numpy as np
import pytest
import torch

from ratfast.checkpoints import open_checkpoint, write
from ratfast.layout import Layout, TensorSpec


@pytest.fixture
def few_files():
    """The limit on open files, lowered for the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * highest + 60, hard))
    yield 2 * highest + 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_files_than_the_limit(tmp_path, few_files):
    layout = Layout.pack([TensorSpec("a", (4,), "float32")])
    write(tmp_path / "a.safetensors", layout, np.arange(4, dtype=np.float32))
    files = [open_checkpoint(tmp_path / "a.safetensors") for _ in range(few_files)]
    assert all(np.frombuffer(file.row, np.float32).tolist() == [0, 1, 2, 3] for file in files)


def test_one_descriptor_for_a_file_of_many_tensors(tmp_path, few_files):
    for zipped in (True, False):
        state = {str(n): torch.full((4,), float(n)) for n in range(20)}
        torch.save(state, tmp_path / f"{zipped}.pt", _use_new_zipfile_serialization=zipped)
    before = len(os.listdir("/proc/self/fd"))
    files = [open_checkpoint(tmp_path / f"{zipped}.pt") for zipped in (True, False) for _ in range(20)]
    arrays = [file.stored(name) for file in files for name in file.names]
    assert len(os.listdir("/proc/self/fd")) == before + len(files)
    assert all(np.frombuffer(bytes(array), np.float32)[0] == n % 20 for n, array in enumerate(arrays))
