"""A finished tiny training, shared by the tests of analyses."""

from pathlib import Path

import pytest

from ratfast import config, train

from ..train.conftest import backbone_file, data_dir, tiny_values  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def finished(data_dir: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The output folder: four members, two of each of two sources."""
    output = tmp_path_factory.mktemp("finished") / "output"
    values = tiny_values(data_dir, backbone_file, output)
    values["data"]["aux"] = ["Near"]
    values["train"]["runs"] = 4
    train.run(config.from_dict(values))
    return output
