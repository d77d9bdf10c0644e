"""Prints `--ignore` options of pytest for test files that need a package which this machine does not have.

`python benchmarks/importable.py tests` prints one option per line, and why on the standard error. A test file
that fails to import for any other reason is left for pytest to report.
"""

import importlib.util
import sys
from pathlib import Path


def missing_package(path: Path) -> str | None:
    """The package outside the project that the file cannot be imported without, or None."""
    spec = importlib.util.spec_from_file_location(f"_probe_{path.stem}", path)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        return None if package in ("", "ratfast", "tests") else package
    except BaseException:  # pytest's skips are no Exception
        return None
    return None


def main() -> None:
    """Goes through the folders or files given as arguments."""
    for argument in sys.argv[1:]:
        root = Path(argument)
        for path in sorted(root.rglob("test_*.py")) if root.is_dir() else [root]:
            sys.path.insert(0, str(path.parent))
            package = missing_package(path)
            sys.path.pop(0)
            if package:
                print(f"{path} is left out: no package {package}", file=sys.stderr)
                print(f"--ignore={path}")


if __name__ == "__main__":
    main()
