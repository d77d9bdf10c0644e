import json
import os

import pytest

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


def test_the_run_that_another_process_finished_meanwhile_stays(tmp_path) -> None:
    with records.new_run(tmp_path / "run00") as late:
        (late / "who").write_text("the one taken for lost")
        (late).rename(tmp_path / "aside")
        with records.new_run(tmp_path / "run00") as folder:
            (folder / "who").write_text("the other")
        (tmp_path / "aside").rename(late)
    assert (tmp_path / "run00" / "who").read_text() == "the other"
    assert os.listdir(tmp_path) == ["run00"]
