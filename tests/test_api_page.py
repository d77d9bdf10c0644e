"""The pages of the Python interface: made without a warning, and nothing public is missing."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "api.py"
MODULES = (
    "ratfast",
    "ratfast.averaging",
    "ratfast.optim",
    "ratfast.data",
    "ratfast.models",
    "ratfast.checkpoints",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pytest.importorskip("pdoc")
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_its_place(pages, name):
    page = (pages / (name.replace(".", "/") + ".html")).read_text(encoding="utf-8")
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        if getattr(value, "__name__", "").startswith(name + ".") and not isinstance(value, type):
            assert (pages / (value.__name__.replace(".", "/") + ".html")).is_file(), public
        elif not public.startswith("__"):
            assert f'id="{public}"' in page, public


def test_analyses_are_there_and_their_machinery_is_not(pages):
    assert (pages / "ratfast/analysis/curves.html").is_file()
    assert not (pages / "ratfast/analysis/networks.html").exists()


def test_without_a_folder_it_says_how():
    pytest.importorskip("pdoc")
    made = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert made.returncode == 1 and made.stderr.startswith("usage:")
