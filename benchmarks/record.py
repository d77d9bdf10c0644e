"""Runs a benchmark suite and keeps what it measured: `python benchmarks/record.py SUITE [ARGUMENTS]`.

SUITE is a file of tests, `test_*.py`, and ARGUMENTS go to pytest; or a script that takes `--json FILE` and writes
a list of benchmarks there: group, contestant, seconds (a list) and extra.

Writes benchmarks/results/SUITE-MACHINE-COMMIT.json: the command, the environment variables that shape the
suite, the machine, the versions, the commit, every repetition in seconds, medians, for each group how many times
the median of each of this project's contestants goes into the median of every other, and, where a group has a
contestant "copy", the bytes per second of all as shares of its own.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda130", "safetensors", "pytest-benchmark")
VARIABLES = re.compile(r"(RATFAST|OMP|MKL|TORCH|CUDA|MALLOC|ATEN)_\w+")


def output(*command: str) -> str:
    """What a command prints, or nothing where it does not run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> dict[str, Any]:
    """The processor, memory, GPU and system that the suite runs on."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "load_before": os.getloadavg()[0],
        "gpu": output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter, as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def ratios(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By group and by contestant of this project: the others' medians as multiples of its own."""
    groups: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        groups.setdefault(benchmark["group"], {})[benchmark["contestant"]] = benchmark["median"]
    return {
        group: {
            ours: {other: round(medians[other] / medians[ours], 3) for other in medians if other != ours}
            for ours in medians
            if ours.startswith("ratfast")
        }
        for group, medians in groups.items()
    }


def shares_of_copy(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By group that has a copy: the contestants' bytes per second, of those that must move, as shares of its own."""
    groups: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        if "bytes" in benchmark["extra"]:
            rate = benchmark["extra"]["bytes"] / benchmark["median"]
            groups.setdefault(benchmark["group"], {})[benchmark["contestant"]] = rate
    return {
        group: {name: round(rate / rates["copy"], 3) for name, rate in rates.items() if name != "copy"}
        for group, rates in groups.items()
        if "copy" in rates
    }


def condense(report: dict[str, Any]) -> list[dict[str, Any]]:
    """From pytest-benchmark's report: what each contestant is and every repetition."""
    return [
        {
            "group": benchmark["group"],
            "contestant": benchmark["extra_info"].get("contestant", benchmark["name"]),
            "seconds": benchmark["stats"]["data"],
            "extra": {key: value for key, value in benchmark["extra_info"].items() if key != "contestant"},
        }
        for benchmark in report["benchmarks"]
    ]


def main() -> int:
    """Runs the suite named by the first argument; returns pytest's exit status."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        print(__doc__, file=sys.stderr)
        return 2
    suite = Path(sys.argv[1])
    described = machine()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        of_pytest = suite.name.startswith("test_")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            str(suite),
            *sys.argv[2:],
            f"--benchmark-json={report}",
        ]
        if not of_pytest:
            command = [sys.executable, str(suite), *sys.argv[2:], f"--json={report}"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        status = subprocess.run(command, env=environment, check=False).returncode
        if status != 0:
            return status
        found = json.loads(report.read_text())
    benchmarks = condense(found) if of_pytest else found
    for benchmark in benchmarks:
        benchmark["median"] = statistics.median(benchmark["seconds"])
    commit = output("git", "rev-parse", "HEAD") or "unknown"
    record = {
        "command": shlex.join(["python", "benchmarks/record.py", *sys.argv[1:]]),
        "environment": {
            key: re.sub(r"(/[\w.-]+)+/", "", value)  # of paths, the last part says enough
            for key, value in os.environ.items()
            if VARIABLES.fullmatch(key)
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "uncommitted_changes": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "machine": described,
        "versions": versions(),
        "ratios": ratios(benchmarks),
        "shares_of_copy": shares_of_copy(benchmarks),
        "benchmarks": benchmarks,
    }
    label = (
        re.sub(r"[^\w]+", "-", (described["gpu"] or described["cpu"]).partition(",")[0]).strip("-").lower()
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{suite.stem.removeprefix('test_')}-{label}-{commit[:9]}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("ratios", "shares_of_copy")}, indent=1))
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
