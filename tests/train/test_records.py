import json
import os
import subprocess
import sys

import pytest

from ratfast import InputError
from ratfast.train import records


def test_a_run_appears_whole(tmp_path) -> None:
    final = tmp_path / "target" / "run00"
    with records.new_run(final) as folder:
        records.write_rows(folder, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        assert not final.exists()
    assert records.is_done(final)
    lines = (final / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert os.listdir(final.parent) == ["run00"]


def test_a_failing_run_leaves_nothing(tmp_path) -> None:
    def fail() -> None:
        with records.new_run(tmp_path / "run00") as folder:
            (folder / "part").write_text("half")
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_replaced(tmp_path) -> None:
    (tmp_path / "run00.partial").mkdir()
    (tmp_path / "run00.partial" / "stale").write_text("old")
    with records.new_run(tmp_path / "run00") as folder:
        assert list(folder.iterdir()) == []
    assert sorted(os.listdir(tmp_path / "run00")) == ["done"]


def test_json_is_replaced_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "summary.json"
    records.write_json(path, {"val": 0.5})
    with pytest.raises(TypeError):
        records.write_json(path, {"val": object()})
    assert json.loads(path.read_text()) == {"val": 0.5}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_two_processes_do_not_share_an_output_folder(tmp_path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from ratfast.train import records\n"
        "with records.locked_output(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(InputError, match="another ratfast-train"), records.locked_output(tmp_path):
                pass
        finally:
            process.kill()
    with records.locked_output(tmp_path):  # however the other ended, its lock went with it
        pass


def test_what_a_killed_writer_left_is_removed(tmp_path) -> None:
    (tmp_path / "averages").mkdir()
    (tmp_path / "averages" / ".ratfast-0123.tmp").write_text("half")
    with records.locked_output(tmp_path):
        assert os.listdir(tmp_path / "averages") == []


def test_an_output_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written"),
        records.locked_output(tmp_path / "file" / "out"),
    ):
        pass
