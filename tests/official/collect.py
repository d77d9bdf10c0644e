"""DomainBed's own collect_results beside ratfast's tables, over made-up records and over outputs of ratfast-train.

    python tests/official/collect.py CHECKOUT [OUTPUT...]    # of facebookresearch/DomainBed, or ModelRatatouille
    python tests/official/collect.py CHECKOUT --write        # replaces the record that tests compare with

The script is run as it is, in a process of its own where `wilds` and `timm`, which it imports for data sets and
networks that are not looked at here, are empty stand-ins. It knows no data sets but DomainBed's: records of others are
copied under the name of one with as many domains. Needs tqdm, which DomainBed imports.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402 - beside this file

from ratfast import catalogue  # noqa: E402
from ratfast.analysis import domainbed  # noqa: E402

RECORD = HERE / "collected.txt"
"""What DomainBed's script printed of the made-up records."""

NAMES = {3: "ColoredMNIST", 4: "PACS", 6: "DomainNet", 10: "SVIRO"}
"""By number of domains, a data set that DomainBed knows."""

_RUN = """
import runpy, sys
from types import ModuleType
for name in ("timm", "wilds", "wilds.datasets", "wilds.datasets.camelyon17_dataset", "wilds.datasets.fmow_dataset"):
    sys.modules[name] = ModuleType(name)
sys.modules["wilds.datasets.camelyon17_dataset"].Camelyon17Dataset = object
sys.modules["wilds.datasets.fmow_dataset"].FMoWDataset = object
runpy.run_module("domainbed.scripts.collect_results", run_name="__main__")
"""

Parsed = dict[str, dict[str, list[str]]]
"""By head of a table, by algorithm, the cells."""


def collected(checkout: Path, folder: Path) -> str:
    """What the checkout's collect_results prints of a folder of runs."""
    command = [sys.executable, "-W", "ignore", "-c", _RUN, "--input_dir", str(folder.resolve())]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def parse(text: str) -> Parsed:
    """Tables as collect_results and ratfast print them; names as short as DomainBed cuts them."""
    found: Parsed = {}
    for block in re.split(r"^-{8} ", text, flags=re.MULTILINE)[1:]:
        head, _, *rows = block.strip().splitlines()
        width = 25 if head.startswith("Averages") else 20
        cells = [re.split(r"\s{2,}", row.strip()) for row in rows if row.strip()]
        found[head.strip()] = {name[:width]: values for name, *values in cells}
    return found


def ours(folder: Path) -> Parsed:
    """What ratfast prints of it."""
    return parse(domainbed.to_text(domainbed.tables(domainbed.load_records(folder))))


def write_made_up(folder: Path) -> None:
    """The made-up records, as folders of runs."""
    for number, rows in enumerate(cases.sweep_records()):
        place = folder / f"run{number:04}"
        place.mkdir()
        (place / "results.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def known_copies(output: Path, folder: Path) -> Iterator[Path]:
    """Copies of an output's folders of runs, with data sets that DomainBed knows."""
    for runs in sorted({path.parent.parent for path in output.glob("*/*/results.jsonl")}):
        place = folder / runs.name
        for path in sorted(runs.glob("*/results.jsonl")):
            (place / path.parent.name).mkdir(parents=True)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            if rows[0]["args"]["test_envs"] == [-1]:
                break
            for row in rows:
                if catalogue.find(row["args"]["dataset"]) is None:
                    domains = sum(bool(re.fullmatch(r"env\d+_out_acc", key)) for key in row)
                    row["args"]["dataset"] = NAMES[domains]
            text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
            (place / path.parent.name / "results.jsonl").write_text(text)
        else:
            yield place


def differences(checkout: Path, folder: Path) -> list[str]:
    """What the two say differently of a folder of runs."""
    theirs, own = parse(collected(checkout, folder)), ours(folder)
    found = [head for head in theirs.keys() | own.keys() if head not in theirs or head not in own]
    for head in theirs.keys() & own.keys():
        for name in sorted(theirs[head].keys() | own[head].keys()):
            if theirs[head].get(name) != own[head].get(name):
                found.append(f"{head}, {name}: {theirs[head].get(name)}, ours {own[head].get(name)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("outputs", type=Path, nargs="*", metavar="OUTPUT")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    failed: list[Any] = []

    def compare(folder: Path, name: str) -> None:
        found = differences(arguments.checkout, folder)
        failed.extend(found)
        tables = ours(folder)
        rows = sum(len(table) for table in tables.values())
        print(f"{name}: {len(tables)} tables, {rows} rows: {'differ' if found else 'equal'}", flush=True)
        for line in found:
            print(f"  {line}")

    with tempfile.TemporaryDirectory() as folder:
        made_up = Path(folder) / "made-up"
        made_up.mkdir()
        write_made_up(made_up)
        if arguments.write:
            RECORD.write_text(collected(arguments.checkout, made_up))
        compare(made_up, "made-up records")
        for number, output in enumerate(arguments.outputs):
            for runs in known_copies(output, Path(folder) / str(number)):
                compare(runs, str(output / runs.name))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
