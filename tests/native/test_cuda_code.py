"""What nvcc makes of the kernels, where there is one; no GPU is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc/cuda"


@pytest.mark.skipif(
    shutil.which("nvcc") is None or not SOURCES.is_dir(), reason="no nvcc, or no sources here"
)
@pytest.mark.parametrize("name", ["adam", "sgd", "norm", "mix", "image"])
def test_elements_stay_in_registers(name, tmp_path):
    """An array that the compiler cannot keep in registers appears in PTX as a depot of local memory."""
    output = tmp_path / "kernels.ptx"
    command = ["nvcc", "-std=c++20", "-O3", "-arch=compute_80", "-ptx", SOURCES / f"{name}.cu", "-o", output]
    subprocess.run(command, check=True)
    text = output.read_text()
    assert ".entry" in text
    assert "__local_depot" not in text
