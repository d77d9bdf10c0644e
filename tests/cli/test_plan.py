"""`ratfast plan` against what the folder really holds."""

import json
import re

import pytest

from ratfast import checkpoints, config
from ratfast.cli import main as cli
from ratfast.train import records
from ratfast.train.estimate import HEAD_SPEEDUP, seconds_with
from ratfast.train.lock import locked_output
from ratfast.train.plan import PRETRAINED, Average, Job, Plan
from ratfast.version import __version__


@pytest.fixture
def recipe(tmp_path):
    """Two data sets of two domains with two classes each, empty images: a plan looks at names alone."""
    for name in ("Target", "Other"):
        for domain in ("one", "three", "two")[: 3 if name == "Target" else 2]:
            for label in ("cat", "dog"):
                folder = tmp_path / "data" / name / domain / label
                folder.mkdir(parents=True)
                (folder / "0.png").write_bytes(b"")
    values = {
        "data": {"dir": str(tmp_path / "data"), "target": "Target", "test_env": "two", "aux": ["Other"]},
        "train": {"runs": 2, "aux_runs": 1, "steps": 100, "probe_steps": 20, "batch_size": 4},
        "output": {"dir": str(tmp_path / "output")},
    }
    path = tmp_path / "recipe.toml"
    path.write_text(config.from_dict(values).to_toml())
    return path


def plan(capsys, *arguments, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == code, captured.err
    return captured.out or captured.err


def finish(folder, **values) -> None:
    with records.new_run(folder) as partial:
        records.write_json(partial / records.RUN, values)


def test_nothing_is_done_and_nothing_measured(recipe, capsys, tmp_path) -> None:
    text = plan(capsys, recipe)
    assert text.startswith("Target, tested on two; output folder ")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if re.match(r"\w+ +\d", line)}
    # Batches of 4 from each training domain: 2 of both data sets.
    assert rows["probe"] == ["2", "0", "0", "2", "200", "1,600"]
    assert rows["auxiliary"] == ["1", "0", "0", "1", "100", "800"]
    assert rows["target"] == ["2", "0", "0", "2", "200", "1,600"]
    assert rows["averages"] == ["2", "0", "0", "2", "0", "0"]
    assert rows["all"] == ["7", "0", "0", "7", "500", "4,000"]
    assert "time: unknown, nothing is measured here yet; --images-per-second R" in text
    assert not (tmp_path / "output").exists()
    assert "cost: unknown" in plan(capsys, recipe, "--price-per-hour", 3)


def test_a_given_rate(recipe, capsys) -> None:
    found = json.loads(plan(capsys, recipe, "--images-per-second", 8, "--price-per-hour", 3, "--json"))
    # 100 full updates of 8 images a second each; the head alone three times as fast, also in a run's own probe.
    seconds = {task["name"]: task["seconds"] for task in found["tasks"]}
    assert seconds["auxiliary/Other/run00"] == seconds["target/trial0-run00"] == pytest.approx(100)
    assert seconds["probe/Target"] == pytest.approx(100 / HEAD_SPEEDUP)
    assert seconds["target/trial0-run01"] == pytest.approx(80 + 20 / HEAD_SPEEDUP)
    total = 2 * 100 + 2 * 100 / HEAD_SPEEDUP + 80 + 20 / HEAD_SPEEDUP
    assert found["work_seconds"] == found["seconds"] == pytest.approx(total)
    assert found["cost"] == pytest.approx(total / 3600 * 3)
    two = json.loads(plan(capsys, recipe, "--images-per-second", 8, "--workers", 2, "--json"))
    # Both probes, then the auxiliary run beside the first member, then the second member.
    assert two["seconds"] == pytest.approx(100 / HEAD_SPEEDUP + 100 + 80 + 20 / HEAD_SPEEDUP)
    assert two["cost"] is None


def test_what_is_done_begun_and_failed(recipe, capsys, tmp_path) -> None:
    output = tmp_path / "output"
    finish(output / "probe/Other", images_per_second=50.0)
    finish(output / "probe/Target", images_per_second=40.0)
    finish(output / "auxiliary/Other/run00", images_per_second=20.0)
    found = json.loads(plan(capsys, recipe, "--json"))
    begun = next(task for task in found["tasks"] if task["name"] == "target/trial0-run01")
    assert begun["needs"] == ["auxiliary/Other/run00", "probe/Target"]
    assert (found["images_per_second"], found["head_images_per_second"], found["measured_runs"]) == (
        20,
        40,
        3,
    )
    assert found["work_seconds"] == pytest.approx(800 / 20 + 640 / 20 + 160 / 40)

    (output / "target").mkdir()
    (output / "target/trial0-run00.failed").write_text("its worker was ended by SIGKILL\nmore")
    from dataclasses import asdict

    from ratfast.data import scan
    from ratfast.train.plan import make_plan

    loaded = config.load(recipe)
    made = make_plan(loaded, {name: scan(tmp_path / "data" / name) for name in ("Target", "Other")})
    job = made.jobs[-1]
    identity = {"job": asdict(job), "version": __version__}
    metadata = {"kind": "snapshot", "identity": identity, "values": {"updates": 15}}
    path = output / "target/trial0-run01.snapshot"
    checkpoints.save({}, path, metadata)
    text = plan(capsys, recipe)
    assert "begun:\n  target/trial0-run01, update 15 of 100\n" in text
    assert "failed when last tried:\n  target/trial0-run00: its worker was ended by SIGKILL\n" in text
    assert "measured in 3 finished runs" in text
    found = json.loads(plan(capsys, recipe, "--json"))
    assert found["work_seconds"] == pytest.approx(800 / 20 + 640 / 20 + 40 / 40)
    # Of another version or training it would begin anew, and so says the plan.
    checkpoints.save({}, path, {**metadata, "identity": {**identity, "version": "0"}})
    assert "begun" not in plan(capsys, recipe).partition("\n\n")[2].partition("\n\n")[2]
    path.write_bytes(b"damaged")
    assert "begun" not in plan(capsys, recipe).partition("\n\n")[2].partition("\n\n")[2]
    with locked_output(output):
        assert "being carried out now by process " in plan(capsys, recipe)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.toml"], "absent.toml"),
        (["--data-dir", "/nowhere", "--target", "T", "--test-env", "0"], "/nowhere/T"),
        (["--images-per-second", "0"], "0"),
        (["--price-per-hour", "x"], "'x' is not a valid float"),
        (["--workers", "0"], "--workers is 0, expected an integer of at least 1"),
    ],
)
def test_wrong_input_is_one_sentence(capsys, arguments, words) -> None:
    text = plan(capsys, *arguments, code=2)
    assert words in text and text.count("\n") == 1


def test_workers_wait_for_what_they_need() -> None:
    def job(name, source=PRETRAINED, probe=None):
        return Job("target", name, "T", 0, 0, 0, probe, source, 0, 1)

    members = (job("m0"), job("m1", "a"))
    made = Plan((job("p"), job("a", probe="p"), *members), (Average("u", False, members),), 0, {}, ())
    seconds = {"p": 3.0, "a": 4.0, "m0": 1.0, "m1": 2.0, "averages/u": 5.0}
    assert seconds_with(made, seconds, 1) == 15.0
    assert seconds_with(made, seconds, 2) == seconds_with(made, seconds, 9) == 14.0
    assert seconds_with(made, {}, 2) == 0.0
