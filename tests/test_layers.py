"""The order of the layers: who may import whom, read from the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ratfast

PACKAGE = Path(ratfast.__file__).parent

# From low to high; a module may import its own layer and lower ones.
LAYERS = [
    {"ratfast", "ratfast.errors", "ratfast.version", "ratfast.dtypes", "ratfast.lazy", "ratfast.catalogue"},
    {"ratfast.layout", "ratfast.protocol"},
    {"ratfast.native", "ratfast.checkpoints"},
    # The image operator is data's own: it belongs to no engine, and falls back on torchvision.
    {
        "ratfast.reference",
        "ratfast.ops",
        "ratfast.image_reference",
        "ratfast.image_ops",
        "ratfast.data",
        "ratfast.models",
    },
    {
        "ratfast.config",
        "ratfast.rows",
        "ratfast.gradients",
        "ratfast.arena",
        "ratfast.averaging",
        "ratfast.ema",
        "ratfast.swa",
    },
    {"ratfast.optim", "ratfast.analysis.distances"},  # the geometry of weights is of no training
    {"ratfast.train"},
    {"ratfast.analysis"},
    {"ratfast.report"},
    {"ratfast.cli"},
]
ENGINES = (
    "ratfast.ops",
    "ratfast.native",
    "ratfast.reference",
    "ratfast.arena",
    "ratfast.averaging",
    "ratfast.optim",
)


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules that the file imports, `if TYPE_CHECKING:` blocks left out."""
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer(module: str) -> int:
    """Index of the layer of a module, or of the subpackage it is in."""
    name = ".".join(module.split(".")[:2])
    found = [index for index, names in enumerate(LAYERS) if module in names]
    found = found or [index for index, names in enumerate(LAYERS) if name in names]
    assert found, f"{name} belongs to no layer"
    return found[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    known = modules()
    for imported in imports(modules()[module]) & set(known):
        if imported != "ratfast":
            assert layer(imported) <= layer(module), f"{module} imports {imported}"


@pytest.mark.parametrize(
    "module", sorted(name for name in modules() if name.startswith(("ratfast.data", "ratfast.models")))
)
def test_data_and_models_never_import_the_engines(module: str) -> None:
    for imported in imports(modules()[module]):
        assert not imported.startswith(ENGINES), f"{module} imports {imported}"


@pytest.mark.parametrize(
    "module",
    [
        "ratfast",
        "ratfast.analysis.averages",
        "ratfast.analysis.curves",
        "ratfast.analysis.distances",
        "ratfast.analysis.domainbed",
        "ratfast.analysis.similarity",
        "ratfast.averaging.files",
        "ratfast.averaging.mergekit",
        "ratfast.averaging.methods",
        "ratfast.averaging.selection",
        "ratfast.averaging.statistics",
        "ratfast.averaging.trajectory",
        "ratfast.catalogue",
        "ratfast.checkpoints",
        "ratfast.checkpoints.opening",
        "ratfast.checkpoints.conversion",
        "ratfast.cli.analyze",
        "ratfast.cli.average",
        "ratfast.cli.convert",
        "ratfast.cli.data",
        "ratfast.cli.evaluate",
        "ratfast.cli.info",
        "ratfast.cli.main",
        "ratfast.cli.plan",
        "ratfast.cli.report",
        "ratfast.cli.train",
        "ratfast.config",
        "ratfast.data",
        "ratfast.data.checking",
        "ratfast.data.fetching",
        "ratfast.layout",
        "ratfast.models.registry",
        "ratfast.native",
        "ratfast.protocol",
        "ratfast.train.estimate",
        "ratfast.train.lock",
        "ratfast.train.plan",
        "ratfast.train.state",
        "ratfast.train.store",
    ],
)
def test_importing_stays_free_of_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
