"""The CUDA kernels and launchers as a library for the host, for where there is no GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def compile_on_host(source: str, entry: str, folder: Path) -> ctypes.CDLL:
    """Compiles `cuda_on_host/ENTRY`, which includes the kernels of `csrc/cuda/SOURCE`, into a library in `folder`."""
    if shutil.which("g++") is None or not (ROOT / "csrc/cuda" / source).is_file():
        pytest.skip("no g++, or no sources here")
    emulation = Path(__file__).parent / "cuda_on_host"
    library = folder / "kernels.so"
    flags = ["-std=c++20", "-O3", "-w", "-shared", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
    includes = [f"-I{emulation}", f"-I{ROOT / 'csrc/cuda'}"]
    subprocess.run(["g++", *flags, *includes, emulation / entry, "-o", library], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    """The library under test."""
    return compile_on_host("mix.cu", "entry.cpp", tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def codes() -> dict[torch.dtype, int]:
    """How that library calls the element types."""
    return {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
