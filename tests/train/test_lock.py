"""One command at a time in an output folder; whatever a killed one leaves behind holds nobody up for long."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ratfast import InputError
from ratfast.train import lock
from ratfast.train.lock import LOCK, find_holder, locked_output

HOLD = (
    "import pathlib, subprocess, sys, time\n"
    "from ratfast.train.lock import locked_output\n"
    "with locked_output(pathlib.Path(sys.argv[1])) as descriptor:\n"
    "    if len(sys.argv) > 2:  # a worker, which holds the folder too\n"
    "        subprocess.Popen(['sleep', sys.argv[2]], pass_fds=[descriptor])\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def hold():
    """Starts a process that holds a folder."""
    started = []

    def start(*arguments) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, arguments)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_says_who_is_there(hold, tmp_path) -> None:
    process = hold(tmp_path)
    message = (
        rf"another ratfast-train .*{tmp_path} \(process {process.pid} on {socket.gethostname()}, since 2"
    )
    with pytest.raises(InputError, match=message), locked_output(tmp_path):
        pass
    assert find_holder(tmp_path).process == process.pid
    process.kill()
    process.wait()
    assert find_holder(tmp_path) is None
    with locked_output(tmp_path):  # however the other ended, its lock went with it
        assert find_holder(tmp_path).process == os.getpid()
    assert find_holder(tmp_path) is None


def test_a_killed_command_holds_the_folder_until_its_workers_have_ended(hold, tmp_path) -> None:
    process = hold(tmp_path, 2)
    process.kill()
    process.wait()
    said, began = [], time.monotonic()
    with locked_output(tmp_path, said.append):
        assert 0.5 < time.monotonic() - began < 30
    assert len(said) == 1 and f"process {process.pid}" in said[0]


def test_a_stopped_process_still_holds_it(hold, tmp_path) -> None:
    process = hold(tmp_path)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(InputError, match="another ratfast-train"), locked_output(tmp_path):
        pass


def other_machine(folder, beat: int) -> None:
    value = {"process": 77, "host": "elsewhere", "since": "2026-01-01 00:00:00", "beat": beat}
    (folder / LOCK).write_text(json.dumps(value).ljust(256))


def test_another_machine_whose_lock_does_not_reach_here_is_heard(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    other_machine(tmp_path, 1)
    beating = threading.Timer(0.15, other_machine, (tmp_path, 2))
    beating.start()
    with (
        pytest.raises(InputError, match="process 77 on elsewhere, since 2026-01-01"),
        locked_output(tmp_path),
    ):
        pass
    beating.join()
    said = []
    with locked_output(tmp_path, said.append):  # it has fallen silent
        assert find_holder(tmp_path).process == os.getpid()
    assert "process 77 on elsewhere" in said[0]


def test_a_file_system_without_locks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        locked_output(tmp_path),
        pytest.raises(InputError, match=f"process {os.getpid()} on"),
        locked_output(tmp_path),
    ):
        pass
    with locked_output(tmp_path):
        other_machine(tmp_path, 1)  # began in the same moment
    other_machine(tmp_path, 1)
    with locked_output(tmp_path):
        pass


def test_what_a_killed_writer_left_is_removed(tmp_path) -> None:
    (tmp_path / "averages").mkdir()
    (tmp_path / "averages" / ".ratfast-0123.tmp").write_text("half")
    with locked_output(tmp_path):
        assert os.listdir(tmp_path / "averages") == []
        (tmp_path / "averages" / ".ratfast-4567.tmp").write_text("half")  # of a worker
    assert os.listdir(tmp_path / "averages") == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}'])
def test_a_lock_file_that_says_nothing(tmp_path, content) -> None:
    (tmp_path / LOCK).write_text(content)
    assert find_holder(tmp_path) is None
    with locked_output(tmp_path):
        pass


def test_an_output_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), locked_output(tmp_path / "file" / "out"):
        pass
