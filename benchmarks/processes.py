"""Running commands as processes of their own: how long each takes from start to exit, and how much memory.

Private memory is what a process cannot share or drop: anonymous pages, among them copied-on-write ones (Pss_Anon of
/proc/PID/smaps_rollup), added over the process and its descendants, and sampled; the largest sample counts. Pages
of mapped files do not belong to it, because the system takes them back at will; resident memory (Rss) has them.
Sampling walks the page tables under a lock that page faults need, so it is done in a round that is not timed.
(ru_maxrss would need no sampling, but it starts from the size of the process that was forked.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RATFAST = (sys.executable, "-c", "from ratfast.cli.main import main; main()")
"""The command `ratfast` of this checkout."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A command line to measure.

    Attributes:
        name: what the record calls it.
        command: what to run.
        output: the file that it writes; removed before and after each run.
        check: raises unless the output is right; called with the output after the first run.
    """

    name: str
    command: Sequence[str]
    output: Path
    check: Callable[[Path], None]


def environment() -> Mapping[str, str]:
    """That of the contestants: this checkout is importable."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(command: Sequence[str], sampling: float | None = None) -> dict[str, float]:
    """Runs a command to its end.

    Args:
        command: the program and its arguments; what it prints is shown only if it fails.
        sampling: seconds between two samples of its memory; by default none is taken.

    Returns:
        `seconds` from start to exit, and with sampling `peak_private_mib`, `peak_resident_mib`, `peak_processes` and
        `peak_threads`.

    Raises:
        RuntimeError: it failed.
    """
    log = os.memfd_create("log")
    private = resident = processes = threads = 0
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        if sampling is None:
            _, status = os.waitpid(process.pid, 0)
        else:
            while True:
                ended, status = os.waitpid(process.pid, os.WNOHANG)
                if ended:
                    break
                pids = family(process.pid)
                processes = max(processes, len(pids))
                threads = max(threads, sum(map(count_threads, pids)))
                sizes = [memory_kib(pid) for pid in pids]
                private = max(private, sum(size[0] for size in sizes))
                resident = max(resident, sum(size[1] for size in sizes))
                time.sleep(sampling)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            text = os.pread(log, 1 << 16, max(0, os.fstat(log).st_size - (1 << 13)))
            raise RuntimeError(f"{' '.join(command[:8])} ... failed:\n{text.decode(errors='replace')}")
    finally:
        os.close(log)
        if process.returncode is None:
            process.kill()
            process.wait()
    found = {"seconds": seconds}
    if sampling is not None:
        found["peak_private_mib"] = round(private / 1024, 1)
        found["peak_resident_mib"] = round(resident / 1024, 1)
        found |= {"peak_processes": processes, "peak_threads": threads}
    return found


def family(pid: int) -> list[int]:
    """A process and its descendants; empty once it is gone."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def count_threads(pid: int) -> int:
    """Threads of a process; 0 once it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def memory_kib(pid: int) -> tuple[int, int]:
    """Private and resident memory of a process, as this module counts them; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    sizes = dict(re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE))
    return int(sizes.get("Pss_Anon", 0)), int(sizes.get("Rss", 0))


def compare(
    contestants: Sequence[Contestant],
    rounds: int,
    group: str,
    *,
    prepare: Callable[[], None] = lambda: None,
    sampling: float = 0.02,
) -> list[dict[str, Any]]:
    """Measures contestants in turns: one round to check results and sample memory, then the timed ones.

    Args:
        contestants: who takes part; one that fails or whose result is wrong is reported and left out.
        rounds: how often each is timed. Contestants take turns, so that what else the machine does meets all.
        group: what the record calls the comparison.
        prepare: called before every run.
        sampling: seconds between two samples of memory.

    Returns:
        For each contestant what a record holds: group, contestant, seconds, extra.
    """
    results = []
    for contestant in contestants:
        try:
            measured = _once(contestant, prepare, sampling)
        except Exception as error:  # others' programs may fail in any way
            print(f"{contestant.name} is left out: {error}", file=sys.stderr)
            continue
        del measured["seconds"]
        results.append(
            {"group": group, "contestant": contestant.name, "seconds": [], "extra": dict(measured)}
        )
    taking_part = {result["contestant"]: result for result in results}
    for _ in range(rounds):
        for contestant in contestants:
            if contestant.name in taking_part:
                measured = _once(contestant, prepare, None)
                taking_part[contestant.name]["seconds"].append(measured["seconds"])
    return results


def _once(contestant: Contestant, prepare: Callable[[], None], sampling: float | None) -> dict[str, float]:
    contestant.output.unlink(missing_ok=True)
    prepare()
    measured = run(contestant.command, sampling)
    if sampling is not None:
        contestant.check(contestant.output)
    contestant.output.unlink(
        missing_ok=True
    )  # at once, so that it is not written to disk during the next run
    return measured


def report(results: Sequence[Mapping[str, Any]], path: str | None) -> None:
    """Prints what was measured, and writes it for `record.py` where a path is given."""
    for result in results:
        seconds = sorted(result["seconds"])
        middle = seconds[len(seconds) // 2] if seconds else float("nan")
        details = ", ".join(f"{key} {value}" for key, value in result["extra"].items())
        print(f"{result['contestant']:28} {middle:9.3f} s  {details}")
    if path is not None:
        Path(path).write_text(json.dumps(list(results)))
