"""`ratfast average --config`: a merge as a YAML file describes it."""

import pytest
import torch

from ratfast import checkpoints
from ratfast.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1.0), ("b", 4.0)):
        checkpoints.save({"w": torch.full((3,), value), "v": torch.full((2,), value)}, f"{name}.safetensors")
    (tmp_path / "merge.yml").write_text(
        "merge_method: linear\nout_dtype: float64\nmodels:\n"
        "  - {model: a.safetensors, parameters: {weight: [{filter: v, value: 0}, {value: 2}]}}\n"
        "  - {model: b.safetensors}\n"
    )
    return tmp_path


def average(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["average", *arguments])
    return stop.value.code


def test_merge(folder, capsys):
    assert average("--config", "merge.yml", "-o", "out.safetensors") == 0
    assert "average of 2 checkpoints" in capsys.readouterr().out
    tensors = checkpoints.load("out.safetensors")
    assert tensors["w"].tolist() == [2.0] * 3 and tensors["v"].tolist() == [4.0] * 2
    assert tensors["w"].dtype == torch.float64
    assert average("--config", "merge.yml", "-o", "out.safetensors", "--dtype", "float32") == 0
    assert checkpoints.load("out.safetensors")["w"].dtype == torch.float32


@pytest.mark.parametrize("more", [["a.safetensors"], ["--method", "ties"], ["--density", "0.5"]])
def test_the_file_says_it_all(folder, capsys, more):
    assert average("--config", "merge.yml", "-o", "out.safetensors", *more) == 2
    assert "--config takes the method and the checkpoints from the file" in capsys.readouterr().err
    assert not (folder / "out.safetensors").exists()


def test_wrong_file(folder, capsys):
    (folder / "merge.yml").write_text("merge_method: passthrough\n")
    assert average("--config", "merge.yml", "-o", "out.safetensors") == 2
    assert "merge.yml: merge_method passthrough is not supported" in capsys.readouterr().err
