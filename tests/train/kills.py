"""Kills trainings at random moments, lets them go on, and compares what comes out with one that nobody killed.

    python tests/train/kills.py --kills 200

A small plan is carried out again and again. Each time it is killed by SIGKILL, SIGTERM, SIGINT or SIGHUP and started
again until it gets to its end; every file must then be the same to the byte, apart from measured times, and none may
be left over. A part of the plans runs with two workers, of which any may be killed by SIGKILL as well. Prints JSON;
exits with 1 at the first difference.

With `--moved 0.5` the plans have a store, and after half of the kills the next command runs in a new folder, as on
another machine, which has nothing but the store; there are no workers then, as those of a killed command live on for
an instant.

The command is forked from this process, which has imported everything, so that moments fall into the training and not
into the imports. Workers are processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported

import ratfast.train.execution  # noqa: F401
from ratfast import config
from ratfast.cli import main as cli
from ratfast.train import store_lock

sys.path.insert(0, str(Path(__file__).parent))
from conftest import smallest_values, write_dataset
from outputs import children, fingerprint

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def prepare(folder: Path) -> None:
    """Images, weights and the recipe of the plan."""
    write_dataset(folder / "data" / "Shapes", ("dark", "grey", "light"))
    write_dataset(folder / "data" / "Near", ("one", "two"), seed=1)
    values = smallest_values(folder / "data", folder)
    values["train"] |= {
        "steps": 8,
        "head_steps": 6,
        "snapshot_seconds": 0.1,
        "retries": 1000,
        "rows": ["ratatouille", "moving-average", "erm"],
    }
    (folder / "recipe.toml").write_text(config.from_dict(values).to_toml())


def start(folder: Path, workers: int, place: Path, store: list[str]) -> int:
    """Starts the command on the recipe of `folder` in the folder `place`, and returns its process."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        os.chdir(place)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        store_lock.BEAT_SECONDS = 0.02
        cli.train([str(folder / "recipe.toml"), "--workers", str(workers), *store])
    except SystemExit as end:
        os._exit(end.code)
    except KeyboardInterrupt:  # before or after the command itself
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(99)


def wait(process: int, seconds: float) -> int | None:
    """The exit code (a signal's is negative) if the process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def fail(folder: Path, sentence: str) -> None:
    print(f"{sentence}; the folder is {folder}", file=sys.stderr)
    print((folder / "log").read_text()[-3000:], file=sys.stderr)
    sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=float, default=0.2, help="share of the plans with two workers")
    parser.add_argument("--moved", type=float, default=0.0, help="share of the kills after which it moves")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ratfast-kills-"))
    prepare(folder)
    chance, began = random.Random(options.seed), time.monotonic()
    output, store = folder / "output", folder / "store"
    with_store = ["--store", f"file://{store}"] if options.moved else []

    started = time.monotonic()
    if wait(start(folder, 1, folder, []), 600) != 0:
        fail(folder, "the training that nobody killed failed")
    whole = time.monotonic() - started
    expected = fingerprint(output)
    links = {name: expected[name] for name in expected if (output / name).is_symlink()}

    kills: Counter[str] = Counter()
    plans: Counter[int] = Counter()
    with_state = moves = 0
    while kills.total() < options.kills:
        shutil.rmtree(output)
        shutil.rmtree(store, ignore_errors=True)
        place = folder
        workers = 2 if chance.random() < options.shared and not options.moved else 1
        length = whole if workers == 1 else whole + 6.0  # which workers need to import what they need
        while True:
            process = start(folder, workers, place, with_store)
            code = None
            for _ in range(2):
                code = wait(
                    process, chance.uniform(0, length * 0.35) if kills.total() < options.kills else 600
                )
                if code is not None:
                    break
                number = chance.choice(SIGNALS)
                victims = children(process)
                if number == signal.SIGKILL and victims and chance.random() < 0.5:
                    os.kill(chance.choice(victims), number)  # its task goes on in another
                    kills["SIGKILL of a worker"] += 1
                    continue
                with_state += any((store if options.moved else output).rglob("*.snapshot"))
                os.kill(process, number)
                kills[number.name] += 1
                code = wait(process, 90)
                if code not in (-number, CODES.get(number), 0):
                    fail(folder, f"{number.name} ended it with code {code}")
                break
            if code is None:
                code = wait(process, 600)
            if code == 0:
                break
            if code not in (*CODES.values(), *(-number for number in SIGNALS)):
                fail(folder, f"it ended by itself with code {code}")
            if chance.random() < options.moved:
                moves += 1
                shutil.rmtree(place / "output", ignore_errors=True)
                place = folder / f"machine{moves}"
                place.mkdir()
        plans[workers] += 1
        found = fingerprint(place / "output")
        if options.moved:  # the last machine need not have everything; the store has all but links
            wrong = [name for name in found if found[name] != expected.get(name)]
            if wrong:
                fail(folder, f"after {kills.total()} kills these are not the same: {', '.join(wrong)}")
            found = fingerprint(store) | links
        if place != folder:
            (place / "output").rename(output)
        if found != expected:
            names = sorted(
                name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
            )
            fail(folder, f"after {kills.total()} kills these are not the same: {', '.join(names)}")
        print(f"{kills.total()} kills, {plans.total()} plans, all the same", file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    report = {
        "kills": kills.total(),
        **dict(sorted(kills.items())),
        "while_a_state_was_on_disk": with_state,
        "plans": plans.total(),
        "plans_with_two_workers": plans[2],
        "moves": moves,
        "files_compared": len(expected),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
