"""All rows of the table from one recipe, under both protocols."""

import json
from pathlib import Path

import pytest
import torch

from ratfast import checkpoints, config, train
from ratfast.analysis import domainbed
from ratfast.averaging import trajectory
from ratfast.train.rows import METHODS, ROWS
from ratfast.train.summary import describe_protocol

from .conftest import tiny_values


def carry_out(data_dir, backbone_file, output: Path, protocol: str, **changes) -> dict:
    values = tiny_values(data_dir, backbone_file, output)
    values["protocol"] = {"name": protocol}
    values["train"] |= {"rows": ["all"], "trials": 2, "runs": 3, **changes}
    return train.run(config.from_dict(values))


@pytest.fixture(scope="module")
def ours(data_dir, backbone_file, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("rows") / "output"
    return output, carry_out(data_dir, backbone_file, output, "ratfast")


@pytest.fixture(scope="module")
def official(data_dir, backbone_file, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("rows") / "official"
    return output, carry_out(data_dir, backbone_file, output, "official", trials=1)


def read_run(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_every_row_is_there_with_its_paper(ours) -> None:
    _, summary = ours
    assert [row["method"] for row in summary["rows"]] == [method.label for method in METHODS]
    assert {row["row"] for row in summary["rows"]} == set(ROWS)
    assert all("arXiv" in row["paper"] and row["definition"] for row in summary["rows"])
    for row in summary["rows"]:
        assert all(Path(file).is_file() for file in row["files"])
        assert len(row["files"]) == row["trials"] == (1 if "dagger" in row["method"] else 2)


def test_runs_that_sweeps_share_are_trained_once(ours) -> None:
    output, _ = ours
    for trial in range(2):
        shared = output / "plain" / f"trial{trial}-run00"
        assert shared.is_symlink()
        assert shared.resolve() == (output / "target" / f"trial{trial}-run00").resolve()
        assert not (output / "plain" / f"trial{trial}-run01").is_symlink()
    assert read_run(output / "plain/trial0-run01")["initialisation"] == "pre-trained"
    assert len(list((output / "probe").iterdir())) == 3


def test_single_run_rows_are_the_best_run_by_validation(ours) -> None:
    output, summary = ours
    rows = {row["row"]: row for row in summary["rows"] if row["selection"] == "ID val"}
    for row, sweep in (
        ("vanilla", "vanilla"),
        ("erm", "plain"),
        ("inter-training", "target"),
        ("fusing", "fusing"),
    ):
        tests = []
        for trial in range(2):
            runs = [read_run(output / sweep / f"trial{trial}-run{run:02}") for run in range(3)]
            tests.append(max(runs, key=lambda run: run["val"])["test"])
        assert rows[row]["test"] == sum(tests) / 2


def test_soups_average_the_plain_sweep(ours) -> None:
    output, _ = ours
    members = [checkpoints.load(output / f"plain/trial0-run{run:02}/model.safetensors") for run in range(3)]
    soup = checkpoints.load(output / "averages/soup-uniform_trial0.safetensors")
    for name, value in soup.items():
        expected = torch.stack([member[name].double() for member in members]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_averages_along_a_run_say_what_is_in_them(ours) -> None:
    output, _ = ours
    folder = output / "plain/trial0-run01"
    along = read_run(folder)["along"]
    assert set(along) == {"moving-average", "swad"}
    assert (along["moving-average"]["first_step"], along["moving-average"]["last_step"]) == (1, 2)
    losses = [json.loads(line)["val_loss"] for line in (folder / "results.jsonl").read_text().splitlines()]
    first, _ = trajectory.swad_range(losses)
    assert (
        along["swad"]["first_step"] == [0, 1][first]
    )  # evaluations after steps 0 and 2; a segment is what led there
    last = checkpoints.load(folder / "swad.safetensors")
    assert last.keys() == checkpoints.load(folder / "model.safetensors").keys()


def test_records_give_the_same_table_by_domainbeds_selection(ours) -> None:
    output, summary = ours
    tables = domainbed.tables(domainbed.load_records(output))
    table = next(table for table in tables if table.title == "Shapes")
    labels = {
        f"{row['method']}, {row['selection']}"
        if row["method"] in ("Ratatouille", "Soups/DiWA")
        else row["method"]
        for row in summary["rows"]
    }
    assert set(table.rows) == labels
    for sweep in ("plain", "target", "vanilla", "fusing"):
        (cells,) = domainbed.tables(domainbed.load_records(output / sweep))[0].rows.values()
        tests = []
        for trial in range(2):
            runs = [read_run(output / sweep / f"trial{trial}-run{run:02}") for run in range(3)]
            best = max(runs, key=lambda run: (run["val"], run["hparams_seed"]))
            tests.append(best["test_in_split"])
        assert cells[1].mean == pytest.approx(sum(tests) / 2)
        assert [cells[0], cells[2]] == [None, None]


def test_adding_nothing_does_nothing_again(ours, data_dir, backbone_file) -> None:
    output, summary = ours
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    again = carry_out(data_dir, backbone_file, output, "ratfast")
    assert again == summary
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == times


def test_the_official_protocol_evaluates_every_split_every_time(official) -> None:
    output, summary = official
    rows = [
        json.loads(line) for line in (output / "target/trial0-run01/results.jsonl").read_text().splitlines()
    ]
    for row in rows:
        assert all(row[f"env{env}_{half}_acc"] is not None for env in range(3) for half in ("in", "out"))
        assert row["val"] == (row["env0_out_acc"] + row["env2_out_acc"]) / 2
    assert summary["protocol"] == {
        "name": "official", "validation_images": "augmented", "evaluated": "all", "test_images": "split",
        "probe_gradients": "network", "auxiliary_order": "arguments",
    }  # fmt: skip
    line = describe_protocol(config.Recipe(protocol=config.Protocol(name="official")))
    assert line.startswith("protocol official: validation_images=augmented, evaluated=all, test_images=split")


def test_the_official_protocol_tests_single_runs_on_the_in_split_and_averages_on_all(official) -> None:
    output, summary = official
    for member in summary["members"]:
        run = read_run(output / member["name"])
        assert member["test"] == run["test_in_split"]
    stored = json.loads((output / "averages/uniform.json").read_text())
    assert stored["test"] == stored["test_all"]


def test_switches_that_cost_time_alone_change_no_weights(official, data_dir, backbone_file, tmp_path) -> None:
    output, _ = official
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["protocol"] = {"name": "official", "evaluated": "validation", "probe_gradients": "head"}
    values["train"] |= {"rows": ["vanilla", "erm"], "runs": 3}
    train.run(config.from_dict(values))
    for name in ("vanilla/trial0-run01", "probe/Shapes"):
        path = f"{name}/model.safetensors"
        assert checkpoints.sha256(tmp_path / "output" / path) == checkpoints.sha256(output / path)


def test_the_order_of_auxiliary_runs(data_dir, backbone_file, tmp_path) -> None:
    from ratfast import protocol
    from ratfast.data import scan
    from ratfast.train.plan import make_plan, run_arguments

    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["train"]["aux_runs"] = 4
    datasets = {name: scan(data_dir / name) for name in ("Shapes", "Far", "Near")}
    values["protocol"] = {"auxiliary_order": "arguments"}
    recipe = config.from_dict(values)
    plan = make_plan(recipe, datasets)
    jobs = {job.name: job for job in plan.jobs}
    for source in plan.sources:
        folders = [protocol.run_folder(run_arguments(recipe, jobs[run])) for run in source.runs]
        assert folders == sorted(folders)
        assert sorted(source.runs) == [f"auxiliary/{source.name}/run{run:02}" for run in range(4)]


def test_a_run_that_would_start_from_something_else_is_refused(data_dir, backbone_file, tmp_path) -> None:
    from ratfast import InputError

    folder = tmp_path / "aux"
    folder.mkdir()
    (folder / "B.pth").write_bytes(backbone_file.read_bytes())
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["data"]["aux"] = []
    values["model"]["aux_weights"] = [str(folder)]
    values["train"] |= {"runs": 2, "steps": 2}
    train.run(config.from_dict(values))
    (folder / "A.pth").write_bytes(backbone_file.read_bytes())
    with pytest.raises(InputError, match=r"run01 started from .*B\.pth, and would now from .*A\.pth"):
        train.run(config.from_dict(values))
