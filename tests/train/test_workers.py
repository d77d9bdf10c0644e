"""Several tasks at a time in processes of their own: the same results, and failures that stay where they are."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from ratfast import InputError, config, train
from ratfast.errors import UnfinishedError
from ratfast.train import host, workers
from ratfast.train.failures import failure_of, failure_of_exit
from ratfast.train.progress import RunState
from ratfast.train.worker import Event, RelayedView

from .conftest import smallest_values
from .outputs import children, fingerprint

TRAIN = [sys.executable, "-c", "from ratfast.cli.main import train; train()", "recipe.toml"]


@pytest.fixture(scope="module")
def values(data_dir, tmp_path_factory) -> dict:
    return smallest_values(data_dir, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def folder(values, tmp_path_factory) -> Path:
    """A working directory, and in it the output of the recipe without workers."""
    folder = tmp_path_factory.mktemp("workers")
    here = Path.cwd()
    os.chdir(folder)
    try:
        train.run(recipe_of(values))
    finally:
        os.chdir(here)
    (folder / "output").rename(folder / "expected")
    return folder


def recipe_of(values, **keys) -> config.Recipe:
    return config.from_dict({**values, "train": {**values["train"], **keys}})


def run(recipe: config.Recipe) -> list[str]:
    console = Console(file=io.StringIO(), width=500)
    try:
        train.run(recipe, console)
    finally:
        lines = console.file.getvalue().splitlines()
    return lines


@pytest.mark.slow
def test_failures_stay_where_they_are_and_the_end_is_the_same(folder, values, monkeypatch) -> None:
    """One task finds the GPU full every time, another's worker is killed once; then the same command again."""
    monkeypatch.chdir(folder)
    broken = (
        "import os, pathlib, signal, torch\n"
        "from ratfast.train import work\n"
        "def run_job(job, context, original=work.run_job):\n"
        "    if job.name == 'auxiliary/Near/run00':\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')\n"
        "    if job.name == 'probe/Shapes' and not pathlib.Path('killed').exists():\n"
        "        pathlib.Path('killed').touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(job, context)\n"
        "work.run_job = run_job\n"
    )
    recipe = recipe_of(values, workers=2)
    console = Console(file=io.StringIO(), width=500)
    code = workers._CODE
    with monkeypatch.context() as patched:
        patched.setattr(workers, "_CODE", code.replace("; main(", f"; exec({broken!r}); main("))
        with pytest.raises(UnfinishedError) as caught:
            train.run(recipe, console)
    assert not caught.value.input_is_wrong
    full = "the GPU's memory is full: lower train.batch_size or data.eval_cache_device_gib, or free some"
    assert caught.value.lines == [
        f"auxiliary/Near/run00 failed (2 times): {full}",
        "not done, since they need it: target/trial0-run01, averages/uniform, averages/greedy",
    ]
    text = console.file.getvalue()
    assert (
        "probe/Shapes: its worker was ended by SIGKILL, as the kernel does when memory runs out; tried again"
        in text
    )
    assert (folder / "output/target/trial0-run00/done").is_file()
    failure = (folder / "output/auxiliary/Near/run00.failed").read_text()
    assert failure.startswith(full) and "Traceback" in failure
    assert not (folder / "output/probe/Shapes.failed").exists()

    run(recipe)
    assert fingerprint(folder / "output") == fingerprint(folder / "expected")


@pytest.mark.slow
def test_interrupted_the_workers_save_and_are_gone(folder, values, tmp_path) -> None:
    """The command says how to go on, leaves nothing running, and goes on from what it saved."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_of(values, workers=2, steps=4000, head_steps=4000, snapshot_seconds=3).to_toml())
    process = subprocess.Popen(
        TRAIN, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        states = [tmp_path / "output" / "probe" / f"{name}.snapshot" for name in ("Near", "Shapes")]
        while not all(path.is_file() for path in states):
            assert process.poll() is None
            time.sleep(0.05)
        started, before = children(process.pid), [path.stat().st_mtime_ns for path in states]
        assert len(started) == 2
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "ratfast: interrupted; to go on: ratfast-train recipe.toml"
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    assert all(path.stat().st_mtime_ns > mtime for path, mtime in zip(states, before, strict=True))
    plan = [sys.executable, "-c", "from ratfast.cli.main import main; main()", "plan", "recipe.toml"]
    text = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "begun:\n  probe/Near, update " in text and " of 4000" in text


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_on_a_full_disk_it_says_so_and_goes_on_once_there_is_room(count, folder, values, monkeypatch) -> None:
    """Files of at most 3 MB hold checkpoints, and not the states of trainings of the whole network."""
    monkeypatch.chdir(folder)
    shutil.rmtree("output", ignore_errors=True)
    Path("recipe.toml").write_text(recipe_of(values, workers=count).to_toml())
    limit = 3 * 10**6
    process = subprocess.run(
        [*TRAIN, "--set", "train.snapshot_seconds=0"], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.endswith("; to go on: ratfast-train recipe.toml --set train.snapshot_seconds=0")
    assert "auxiliary/Near/run00" in process.stderr and "file too large" in process.stderr
    assert "Traceback" not in process.stderr
    assert Path("output/probe/Near/done").is_file()
    train.run(config.load("recipe.toml", ["train.workers=1"]), Console(file=io.StringIO()))
    assert fingerprint(folder / "output") == fingerprint(folder / "expected")


def test_a_mistake_that_only_a_worker_finds_is_the_users(values, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(values, workers=2)
    wrong = (
        "from ratfast import InputError\n"
        "from ratfast.train import work\n"
        "def run_job(job, context): raise InputError('the loss is nan, expected a finite number')\n"
        "work.run_job = run_job\n"
    )
    monkeypatch.setattr(workers, "_CODE", workers._CODE.replace("; main(", f"; exec({wrong!r}); main("))
    with pytest.raises(UnfinishedError) as caught:
        train.run(recipe, Console(file=io.StringIO()))
    assert caught.value.input_is_wrong
    assert caught.value.lines[0] == "probe/Near failed: the loss is nan, expected a finite number"
    assert [path.name for path in (tmp_path / "output").rglob("*") if path.is_file()] == [".lock"]


def test_events_are_few_and_the_last_state_is_among_them() -> None:
    now, sent = [0.0], []
    view = RelayedView(sent.append, lambda: now[0])
    run = view.begin("one", 100)
    for _ in range(100):
        now[0] += 0.01
        run.step(4)
    run.end()
    shown = [event.values[0].done for event in sent if event.kind == "show"]
    assert len(shown) <= 8 and shown[-1] == 100 and shown == sorted(shown)
    assert sent[-1] == Event("end", ("one",))
    del sent[:]
    for done in range(1, 101):
        view.count("decoding", done, 100)
    assert sent == [Event("count", ("decoding", 1, 100)), Event("count", ("decoding", 100, 100))]
    view.show(RunState("two", 1, 2))
    view.show(RunState("two", 2, 2))
    assert len(sent) == 3


def test_failures_are_a_sentence() -> None:
    import torch

    assert failure_of(InputError("x is\nwrong")).sentence == "x is wrong"
    assert "GPU's memory is full" in failure_of(torch.OutOfMemoryError("CUDA out of memory. ...")).sentence
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert "machine's memory is full" in failure_of(caught.value).sentence
    assert failure_of(OSError(28, "No space left on device", "a/b")).sentence == (
        "cannot write a/b: no space left on device"
    )
    assert failure_of(KeyError("x")).sentence == "KeyError: 'x'"
    assert "SIGSEGV" in failure_of_exit(-11).sentence
    assert failure_of_exit(3).sentence == "its worker ended with exit code 3"


def test_one_worker_for_each_gpu(monkeypatch, recipe) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    values = recipe.to_dict()
    values["train"]["device"] = "auto"
    automatic = config.from_dict(values)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert host.find_workers(automatic, gpu) == 4
    assert host.find_workers(automatic, cpu) == host.find_workers(recipe, cpu) == 1
    assert host.gpus_for_workers(gpu) == ["0", "1", "2", "3"]
    assert host.gpus_for_workers(torch.device("cuda:2")) == ["2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a1,5")
    assert host.gpus_for_workers(gpu) == ["GPU-a1", "5"]
    assert host.gpus_for_workers(cpu) == []
    values["train"] |= {"workers": 3, "device": "cuda:1"}
    assert host.find_workers(config.from_dict(values), gpu) == 3


def test_each_worker_gets_its_gpu(monkeypatch) -> None:
    started = []

    class Recorded:
        def __init__(self, number, shared, environment, lock, display):
            started.append((number, environment.get("CUDA_VISIBLE_DEVICES"), environment["OMP_NUM_THREADS"]))
            self.number, self.connection = number, threading.Lock()

    monkeypatch.setattr(workers, "Worker", Recorded)
    shared = type("Shared", (), {"threads": 2})
    several = workers.Workers(3, shared, ["5", "7"], 0, None)
    for _ in range(3):
        several._start()
    assert started == [(0, "5", "2"), (1, "7", "2"), (2, "5", "2")]
