"""A terminal that is closed while a training runs: its state is saved, unless nohup is to keep it going."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ratfast import checkpoints, config

from .conftest import smallest_values

TRAIN = [sys.executable, "-c", "from ratfast.cli.main import train; train()", "recipe.toml"]


def write_recipe(data_dir: Path, folder: Path, **keys) -> None:
    values = smallest_values(data_dir, folder)
    values["train"] |= {"head_steps": 100_000, "snapshot_seconds": 0.2, **keys}
    (folder / "recipe.toml").write_text(config.from_dict(values).to_toml())


def wait_for(condition, process: int) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_terminal_ends_it_with_its_state_saved(data_dir, tmp_path, workers) -> None:
    write_recipe(data_dir, tmp_path, workers=workers, snapshot_seconds=2.0)
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.environ["OMP_NUM_THREADS"] = "1"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.execv(TRAIN[0], TRAIN)
    os.set_blocking(terminal, False)
    state = tmp_path / "output" / "probe" / "Near.snapshot"

    def begun() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)  # bars, which nobody may have to wait for
        return state.is_file()

    wait_for(begun, process)
    before, closed = state.stat().st_mtime_ns, time.monotonic()
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) in (129, 120)  # 120: what was left to print had nowhere to go
    assert time.monotonic() - closed < 60
    assert state.stat().st_mtime_ns > before
    assert checkpoints.read_metadata(state)["values"]["updates"] > 0
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_under_nohup_it_goes_on(data_dir, tmp_path) -> None:
    write_recipe(data_dir, tmp_path, head_steps=300, workers=2)
    process = subprocess.Popen(
        TRAIN, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for((tmp_path / "output" / "probe" / "Near.snapshot").is_file, process.pid)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in [process.pid, *map(int, children)]:
            os.kill(number, signal.SIGHUP)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "hung up" not in err and "tried again" not in err
