"""A pool of checkpoints larger than a machine wants to hold: time and private memory of `ratfast average`.

`python benchmarks/record.py benchmarks/large_pool.py` writes random safetensors that add up to 20 GB, without holes,
averages them, and compares parts of the result with a sum in float64. "read" is the floor: a program that only
reads the same files, as many at a time as there are cores. Before every run the files are dropped from the page
cache, as far as the system lets them go, so that the disk counts for both; `RATFAST_BENCH_CACHED=1` leaves them.

`extra` of the record says how much private memory was used at most, and what is allowed: the output and 64 MiB.

Arguments: `--json FILE` (for record.py).

Environment:
    RATFAST_BENCH_POOL_GB: what the files add up to, 20 by default (10^9 bytes).
    RATFAST_BENCH_MODELS: how many files, 10 by default.
    RATFAST_BENCH_ROUNDS: how often each contestant is timed, 3 by default.
    RATFAST_BENCH_FOLDER: where the files are written, by default a temporary folder; they are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from processes import RATFAST, Contestant, compare, report

from ratfast.checkpoints import write_chunks
from ratfast.layout import Layout, TensorSpec

GIGABYTES = float(os.environ.get("RATFAST_BENCH_POOL_GB", "20"))
MODELS = int(os.environ.get("RATFAST_BENCH_MODELS", "10"))
ROUNDS = int(os.environ.get("RATFAST_BENCH_ROUNDS", "3"))
CACHED = os.environ.get("RATFAST_BENCH_CACHED") == "1"
ALLOWED_MIB = 64  # of private memory, beside the output
TENSOR = (1024, 4096)  # float32: 16 MiB

READER = """
import concurrent.futures, os, sys

def read(path):
    memory = bytearray(1 << 22)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(memory):
            pass

with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    list(pool.map(read, sys.argv[2:]))
open(sys.argv[1], "w").close()
"""


def write_pool(folder: Path) -> tuple[Layout, list[Path]]:
    """Writes the files; each has as many tensors as bring the pool to its size."""
    nbytes = 4 * TENSOR[0] * TENSOR[1]
    count = max(1, round(GIGABYTES * 1e9 / MODELS / nbytes))
    layout = Layout.pack(TensorSpec(f"layers.{index}.weight", TENSOR, "float32") for index in range(count))
    needed = (MODELS + 1) * layout.nbytes + (1 << 30)
    free = shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed")
    paths = []
    for index in range(MODELS):
        path = folder / f"{index}.safetensors"
        generator = np.random.Generator(np.random.SFC64(index))
        write_chunks(path, layout, (generator.random(TENSOR, np.float32) for _ in range(count)))
        paths.append(path)
    return layout, paths


def tensor_of(path: Path, layout: Layout, index: int) -> np.ndarray:
    """One tensor of a file of `write_pool`, or of the average, as float64."""
    entry = list(layout)[index]
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start + entry.offset)
        return np.frombuffer(file.read(entry.nbytes), np.float32).astype(np.float64)


def drop_from_cache(paths: list[Path]) -> None:
    """Asks the system to forget the files' pages, which are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure(folder: Path, json_path: str | None) -> None:
    """Writes the pool, runs both contestants and reports."""
    layout, paths = write_pool(folder)

    def check(output: Path) -> None:
        for index in {0, len(layout) // 2, len(layout) - 1}:
            mean = sum(tensor_of(path, layout, index) for path in paths) / len(paths)
            np.testing.assert_allclose(tensor_of(output, layout, index), mean, rtol=1e-6, atol=0)

    files = [str(path) for path in paths]
    out, empty = folder / "out.safetensors", folder / "empty"
    results = compare(
        [
            Contestant(
                "read", [sys.executable, "-c", READER, str(empty), *files], empty, lambda output: None
            ),
            Contestant("ratfast-average", [*RATFAST, "average", "-o", str(out), *files], out, check),
        ],
        ROUNDS,
        f"average of {MODELS} files of {layout.nbytes / 1e9:.2f} GB, {'cached' if CACHED else 'from disk'}",
        prepare=(lambda: None) if CACHED else (lambda: drop_from_cache(paths)),
        sampling=0.2,
    )
    allowed = layout.nbytes / 2**20 + ALLOWED_MIB
    for result in results:
        result["extra"].update(
            bytes=MODELS * layout.nbytes,
            allowed_private_mib=round(allowed, 1),
            within_allowed=result["extra"]["peak_private_mib"] <= allowed,
        )
    report(results, json_path)


def main() -> None:
    """Works in a temporary folder, which is removed in any case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("RATFAST_BENCH_FOLDER")) as folder:
        measure(Path(folder), arguments.json)


if __name__ == "__main__":
    main()
