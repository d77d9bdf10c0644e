"""Renders the docstrings of what ratfast offers as HTML pages: `python docs/api.py FOLDER`.

Needs the extra `docs`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

# In pdoc's terms: a package stands for itself and the modules that it offers, "!" takes away by a pattern.
PAGES = (
    "ratfast",
    "ratfast.config.schema",
    "ratfast.averaging.methods",
    "ratfast.report",
    r"!ratfast\.report\..*",
    r"!ratfast\.analysis\.(averages|domainbed|experiments|lines|networks|plain|predictions|whole)",
)


def render(folder: Path) -> None:
    """Writes `folder/index.html` and a page for each module.

    Args:
        folder: made if it is not there.
    """
    for name in PAGES:
        if not name.startswith("!"):
            _load_names(name)
    pdoc.render.configure(docformat="google", show_source=False)
    # In a checkout pdoc finds a folder `ratfast` besides the package that is installed, and takes the latter.
    warnings.filterwarnings(
        "ignore", message=".*may refer to either the installed Python module or the local"
    )
    pdoc.pdoc(*PAGES, output_directory=folder)


def _load_names(module_name: str) -> None:
    """Loads what a module offers on first use only, since pdoc shows what is loaded."""
    module = importlib.import_module(module_name)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        setattr(module, name, value)
        if getattr(value, "__name__", "") == f"{module_name}.{name}":
            _load_names(value.__name__)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/api.py FOLDER")
    render(Path(sys.argv[1]))
    print(Path(sys.argv[1]) / "index.html")
