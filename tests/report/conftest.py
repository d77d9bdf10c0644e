"""A finished and analysed tiny training, whose folder a test may copy and damage."""

import shutil
from pathlib import Path

import pytest

from ratfast.analysis.whole import Settings, analyse_run

from ..analysis.conftest import finished  # noqa: F401 (fixture)
from ..train.conftest import backbone_file, data_dir  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def analysed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("analysed") / "output"
    shutil.copytree(finished, folder)
    analyse_run(folder, Settings(points=3, draws=2, bootstrap=20))
    return folder


@pytest.fixture
def copy(analysed: Path, tmp_path: Path) -> Path:
    """A copy without the large files of single runs."""
    folder = tmp_path / "copy"
    shutil.copytree(analysed, folder, ignore=lambda at, names: {"model.safetensors"} & set(names))
    return folder
