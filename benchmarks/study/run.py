"""The whole study: images, trainings, analyses, one record and one page. Stopped, the same command goes on from there.

    python benchmarks/study/run.py OUTPUT
    python benchmarks/study/run.py OUTPUT --fraction 0.02 --arms main,far     # within minutes, to see it work

Below OUTPUT: `images/`, `downloads/`, an output folder of ratfast-train for each arm and held-out domain (`main/usps`)
with its log, `study.json` (the record), `study.md` (its tables), `gains.png` (its figure) and `study.html` (the page).
A finished study is not done again: the command then reads what is there, and no number changes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import collecting  # noqa: E402 - beside this file
import digits  # noqa: E402
import figure  # noqa: E402

from ratfast import InputError, config  # noqa: E402
from ratfast.analysis.networks import read_object  # noqa: E402
from ratfast.analysis.whole import ANALYSIS, compare_networks  # noqa: E402
from ratfast.report.drawing import file_png  # noqa: E402
from ratfast.train import records  # noqa: E402

ARMS = ("main", "far", "long")
DOMAINS = ("mfeat", "mnist", "optdigits", "usps")
ANALYSED = ("main",)
"""Arms whose networks are analysed too: curves, diversity, subsets."""


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=Path, help="image folders, instead of those that are made")
    parser.add_argument("--downloads", type=Path, help="archives that were fetched before")
    parser.add_argument("--arms", default=",".join(ARMS), help="A,B,...  (default: %(default)s)")
    parser.add_argument("--domains", default=",".join(DOMAINS), help="A,B,...  (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the steps of each training")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trainings at a time")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for every training, as in ratfast-train",
    )
    found = parser.parse_args(argv)
    for name, known in (("arms", ARMS), ("domains", DOMAINS)):
        chosen = getattr(found, name).split(",")
        if unknown := [word for word in chosen if word not in known]:
            parser.error(f"--{name} names {unknown[0]!r}, expected some of {','.join(known)}")
        setattr(found, name, chosen)
    if not 0 < found.fraction <= 1 or found.jobs < 1:
        parser.error("--fraction must be above 0 and at most 1, --jobs at least 1")
    return found


def training(arm: str, domain: str, images: Path, asked: argparse.Namespace) -> list[str]:
    """The arguments of ratfast-train."""
    path = HERE / f"{arm}.toml"
    recipe = config.read_toml(path)
    found = [str(path), "--data-dir", str(images), "--test-env", domain]
    found += ["--output", str(asked.output / arm / domain)]
    if asked.fraction < 1:
        for key in ("steps", "head_steps", "eval_every"):
            value = max(2, round(recipe[f"train.{key}"] * asked.fraction))
            found += ["--set", f"train.{key}={value}"]
    return found + [word for override in asked.set for word in ("--set", override)]


def call(function: str, arguments: Sequence[str], log: Path) -> None:
    """Calls a command of ratfast's in a process of its own, which writes to a log.

    Raises:
        InputError: it did not end well; the last line of its log is in the sentence.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    code = f"from ratfast.cli.main import {function}; {function}()"
    with log.open("a") as file:
        file.write(f"$ {function} {shlex.join(arguments)}\n")
        file.flush()
        done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=file, stderr=file, check=False)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1]
        raise InputError(f"{function} ended with {done.returncode}: {last} ({log} has the rest)")


def carry_out(arm: str, domain: str, images: Path, asked: argparse.Namespace) -> None:
    """One output folder: its trainings and its analyses, as far as they are not there."""
    started = time.perf_counter()
    folder = asked.output / arm / domain
    log = asked.output / arm / f"{domain}.log"
    call("train", training(arm, domain, images, asked), log)
    if arm in ANALYSED and not analysed(folder):
        call("main", ["analyze", "run", str(folder), "--draws", "5"], log)
    print(f"{arm}/{domain}: done, {(time.perf_counter() - started) / 60:.0f} min", flush=True)


def analysed(folder: Path) -> bool:
    """Whether the analyses of an output folder are there, and of the networks that it holds."""
    if not (folder / ANALYSIS).is_file():
        return False
    return compare_networks(folder, read_object(folder / ANALYSIS)) == ([], [])


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments_of(argv)
    try:
        asked.output.mkdir(parents=True, exist_ok=True)
        images = asked.images or digits.prepare(
            asked.output / "images", asked.downloads or asked.output / "downloads"
        )
        with ThreadPoolExecutor(asked.jobs) as pool:
            jobs = [
                pool.submit(carry_out, arm, domain, images, asked)
                for arm in asked.arms
                for domain in asked.domains
            ]
            try:
                for job in jobs:
                    job.result()
            except (
                BaseException
            ):  # what has begun ends, or was interrupted as this was; the rest does not begin
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        record = collecting.collect(asked.output, asked.arms, asked.domains, asked.fraction)
        text = collecting.tables(record)
        records.write_json(asked.output / "study.json", record)
        records.write_text(asked.output / "study.md", text)
        folders = asked.output
        if record["gains"]:
            (asked.output / "gains.png").write_bytes(file_png(figure.gains(record)))
        call("main", ["report", str(folders), "--html", str(folders / "study.html")], folders / "report.log")
    except InputError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"The record is {asked.output / 'study.json'}, the page {asked.output / 'study.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
