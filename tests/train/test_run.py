"""Whole recipes, seconds long, on tiny images."""

import io
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ratfast import InputError, checkpoints, config, train
from ratfast.averaging import average
from ratfast.errors import UnfinishedError
from ratfast.train import job
from ratfast.train.checkpoint_accuracy import checkpoint_accuracy
from ratfast.train.leakage import warn_of_shared_images
from ratfast.train.progress import Display, RunProgress
from ratfast.train.records import read_rows
from ratfast.train.report import closing_lines
from ratfast.train.tasks import Tasks

from .conftest import tiny_values


def table(summary: dict) -> dict:
    """What of a summary must be the same every time."""
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.fixture(scope="module")
def finished(data_dir, backbone_file, tmp_path_factory) -> tuple[Path, dict]:
    """A carried-out recipe: its output folder and summary."""
    output = tmp_path_factory.mktemp("finished") / "output"
    return output, train.run(config.from_dict(tiny_values(data_dir, backbone_file, output)))


def test_the_summary_holds_what_was_promised(finished) -> None:
    output, summary = finished
    assert json.loads((output / "summary.json").read_text()) == summary
    assert [member["initialisation"] for member in summary["members"]] == [
        "pre-trained", "auxiliary/Far/run00", "auxiliary/Near/run00"
    ]  # fmt: skip
    assert set(summary["averages"]) == {"uniform", "greedy"}
    for record in [*summary["members"], *summary["averages"].values()]:
        assert 0 <= record["val"] <= 1
        assert 0 <= record["test"] <= 1
        assert Path(record.get("checkpoint") or record["file"]).is_file()
    assert set(summary["seconds"]) == {"probe", "auxiliary", "target", "averages"}
    assert summary["test_domain"] == "grey"


def test_the_uniform_average_is_the_mean_of_the_members(finished) -> None:
    _, summary = finished
    members = [checkpoints.load(member["checkpoint"]) for member in summary["members"]]
    result = checkpoints.load(summary["averages"]["uniform"]["file"])
    assert result.keys() == members[0].keys()
    for name, value in result.items():
        expected = torch.stack([member[name].double() for member in members]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_greedy_average_names_its_members(finished) -> None:
    _, summary = finished
    greedy = summary["averages"]["greedy"]
    chosen = {member["name"]: member["checkpoint"] for member in summary["members"]}
    expected = average([chosen[name] for name in greedy["members"]])
    for name, value in checkpoints.load(greedy["file"]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert checkpoints.read_metadata(greedy["file"])["method"] == "greedy"
    # Every member was a candidate, on 6 validation images of each of two domains.
    assert greedy["evaluated_images"] + greedy["spared_images"] == len(chosen) * 12


@pytest.mark.parametrize("method", ["uniform", "greedy"])
def test_evaluating_the_file_gives_the_accuracy_of_the_summary(finished, data_dir, method) -> None:
    _, summary = finished
    record = summary["averages"][method]
    result = checkpoint_accuracy(Path(record["file"]), data_dir / "Shapes", domain="grey", device="cpu")
    assert result["domains"]["grey"]["accuracy"] == record["test"]


def test_rows_are_domainbeds(finished) -> None:
    output, _ = finished
    rows = [
        json.loads(line) for line in (output / "target/trial0-run01/results.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [0, 2]
    assert {"loss", "env0_out_acc", "env2_out_acc"} <= set(rows[0])
    # The held-out domain is looked at where a selection may choose the step, and nowhere else.
    assert {row["step"]: row["env1_in_acc"] is None for row in rows} == {
        0: rows[0]["val"] < rows[1]["val"],
        2: False,
    }


def test_the_same_command_again_does_nothing_again(finished, data_dir, backbone_file) -> None:
    output, summary = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    again = train.run(config.from_dict(tiny_values(data_dir, backbone_file, output)))
    assert again == summary
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == before


def test_a_missing_run_is_made_again_and_so_are_the_averages(
    finished, data_dir, backbone_file, tmp_path
) -> None:
    output, summary = finished
    copy = tmp_path / "output"
    shutil.copytree(output, copy)
    shutil.rmtree(copy / "target/trial0-run01")
    for path in (copy / "averages").iterdir():
        path.write_text("{}")  # what is not made again would be seen
    console = Console(file=io.StringIO())
    again = train.run(config.from_dict(tiny_values(data_dir, backbone_file, copy)), console)
    for method, expected in summary["averages"].items():
        record = again["averages"][method]
        assert {key: record[key] for key in ("val", "test", "members")} == {
            key: expected[key] for key in ("val", "test", "members")
        }
        assert checkpoints.load(record["file"]).keys() == checkpoints.load(expected["file"]).keys()
    lines = console.file.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines[-2:]] == ["averages/uniform", "averages/greedy"]
    assert sum("already done" in line for line in lines) == 7


def test_a_recipe_that_fails_in_its_first_run_leaves_the_folder_to_another(
    data_dir, backbone_file, tmp_path
) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    for path in (tmp_path / "data/Far/one").rglob("*.png"):
        data = path.read_bytes()
        path.write_bytes(data[:60] + bytes(len(data) - 120) + data[-60:])  # passes for whole until decoded
    values = tiny_values(tmp_path / "data", backbone_file, tmp_path / "output")
    with pytest.raises(InputError, match=r"Far/one/.*\.png cannot be"):
        train.run(config.from_dict(values))
    assert [path.name for path in (tmp_path / "output").iterdir()] == [".lock"]
    values["data"]["aux"] = ["Near"]
    values["train"]["runs"] = 1
    assert len(train.run(config.from_dict(values))["members"]) == 1


def test_a_run_whose_loss_diverges_holds_up_only_what_needs_it(
    data_dir, backbone_file, tmp_path, monkeypatch
) -> None:
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    draw = job.draw_hparams

    def one_too_fast(run, recipe):
        return draw(run, recipe) | ({"lr": 1e30} if run.name == "auxiliary/Far/run00" else {})

    with monkeypatch.context() as patch:
        patch.setattr(job, "draw_hparams", one_too_fast)
        with pytest.raises(UnfinishedError) as caught:
            train.run(config.from_dict(values))
    assert caught.value.input_is_wrong
    failed, waiting = caught.value.lines
    assert failed.startswith("auxiliary/Far/run00 failed: the loss is ") and "train.lr_scale" in failed
    assert "averages/uniform" in waiting and "Near" not in waiting
    assert "the loss is" in (tmp_path / "output/auxiliary/Far/run00.failed").read_text()
    done = {path.parent.relative_to(tmp_path / "output").as_posix() for path in tmp_path.rglob("done")}
    assert {"auxiliary/Near/run00", "target/trial0-run00"} <= done and "auxiliary/Far/run00" not in done
    assert len(train.run(config.from_dict(values))["members"]) == 3  # the same recipe again
    assert not list(tmp_path.rglob("*.failed"))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    finished, data_dir, backbone_file, tmp_path
) -> None:
    output, summary = finished
    values = tiny_values(data_dir, backbone_file, tmp_path / "again")
    again = train.run(config.from_dict(values))
    assert [member["val"] for member in again["members"]] == [member["val"] for member in summary["members"]]
    name = "target/trial0-run01/model.safetensors"
    assert checkpoints.sha256(tmp_path / "again" / name) == checkpoints.sha256(output / name)
    values = tiny_values(data_dir, backbone_file, tmp_path / "other")
    values["train"]["seed"] = 1
    train.run(config.from_dict(values))
    other = tmp_path / "other" / "target/trial1-run01/model.safetensors"
    assert checkpoints.sha256(other) != checkpoints.sha256(output / name)


def test_another_recipe_does_not_mix_with_finished_runs(finished, data_dir, backbone_file) -> None:
    output, _ = finished
    values = tiny_values(data_dir, backbone_file, output)
    values["train"]["steps"] = 5
    with pytest.raises(InputError, match=r"another recipe \(differing in train\.steps\)"):
        train.run(config.from_dict(values))


def test_memory_and_threads_may_be_others_when_a_recipe_goes_on(finished, data_dir, backbone_file) -> None:
    output, summary = finished
    values = tiny_values(data_dir, backbone_file, output)
    values["data"] |= {"eval_cache_gib": 0.0, "decode_threads": 1}
    assert train.run(config.from_dict(values))["averages"] == summary["averages"]


def test_given_auxiliary_weights_take_the_place_of_trained_ones(
    finished, data_dir, backbone_file, tmp_path
) -> None:
    output, _ = finished
    given = output / "auxiliary/Near/run00/model.safetensors"
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["data"]["aux"] = []
    values["model"]["aux_weights"] = [str(given)]
    values["train"]["runs"] = 2
    summary = train.run(config.from_dict(values))
    assert [member["initialisation"] for member in summary["members"]] == ["pre-trained", str(given)]
    values["model"]["aux_weights"] = [str(tmp_path / "nowhere.safetensors")]
    values["output"]["dir"] = str(tmp_path / "other")
    with pytest.raises(InputError, match=r"nowhere\.safetensors does not exist"):
        train.run(config.from_dict(values))


def test_several_trials_are_averaged_each_and_together(data_dir, backbone_file, tmp_path) -> None:
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    values["train"] |= {"trials": 2, "runs": 1, "steps": 2}
    values["data"]["aux"] = []
    summary = train.run(config.from_dict(values))
    assert set(summary["averages"]) == {
        "uniform_trial0", "greedy_trial0", "uniform_trial1", "greedy_trial1", "dagger"
    }  # fmt: skip
    assert len(summary["averages"]["dagger"]["members"]) == 2


@pytest.mark.parametrize("updates", [1, 4, 7, 13])
def test_stopped_within_a_run_it_goes_on_there(
    updates, finished, data_dir, backbone_file, tmp_path, monkeypatch
) -> None:
    """By a signal, after so many updates of the whole recipe: the run's state is kept, not only finished runs."""
    made = 0
    step = RunProgress.step

    def stop(progress, images):
        nonlocal made
        step(progress, images)
        made += 1
        if made == updates:
            raise KeyboardInterrupt

    recipe = config.from_dict(tiny_values(data_dir, backbone_file, tmp_path / "output"))
    with monkeypatch.context() as patched:
        patched.setattr(RunProgress, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(recipe)
    assert len(list((tmp_path / "output").rglob("*.snapshot"))) == 1
    console = Console(file=io.StringIO(), width=200)
    summary = train.run(recipe, console)
    assert "goes on after update" in console.file.getvalue()
    assert not list((tmp_path / "output").rglob("*.snapshot"))
    whole, expected = finished
    for key in ("val", "test"):
        assert [run[key] for run in summary["members"]] == [run[key] for run in expected["members"]]
    for path in whole.rglob("*.safetensors"):
        again = tmp_path / "output" / path.relative_to(whole)
        ours, theirs = checkpoints.load(again), checkpoints.load(path)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), (
            path
        )
    for path in whole.rglob("results.jsonl"):
        rows, again = (
            [{key: value for key, value in row.items() if key != "args"} for row in read_rows(file.parent)]
            for file in (path, tmp_path / "output" / path.relative_to(whole))
        )
        assert again == rows, path


def damaged(data_dir: Path, copy: Path, name: str) -> Path:
    """The data sets with one image of the target replaced by something else."""
    shutil.copytree(data_dir, copy)
    victim = copy / "Shapes" / "dark" / "red" / "0.png"
    if name == "text":
        victim = victim.with_suffix(".jpg")
        victim.write_text("not an image at all")
    else:
        data = victim.read_bytes()
        victim.write_bytes(data[: len(data) // 2])
    return victim


@pytest.mark.parametrize("name", ["text", "truncated"])
def test_a_damaged_image_is_named_before_anything_is_trained(data_dir, backbone_file, tmp_path, name) -> None:
    victim = damaged(data_dir, tmp_path / "data", name)
    with pytest.raises(InputError, match=os.path.basename(victim)):
        train.run(config.from_dict(tiny_values(tmp_path / "data", backbone_file, tmp_path / "output")))
    assert not (tmp_path / "output").exists()


def change(section: str, key: str, value):
    def apply(values: dict) -> None:
        values[section][key] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("data", "dir", "/nowhere/at/all"), "/nowhere/at/all"),
        (change("data", "target", "Missing"), "Missing"),
        (change("data", "test_env", 7), "7"),
        (change("data", "test_env", "night"), "night"),
        (change("data", "holdout_fraction", 0.01), "15 images of domain 'one'.* 0 for validation"),
        (
            change("model", "weights", "/nowhere/weights.pth"),
            "model.weights: /nowhere/weights.pth does not exist",
        ),
        (change("output", "dir", "/proc/nowhere/output"), "/proc/nowhere/output"),
    ],
)
def test_wrong_values_are_one_sentence(data_dir, backbone_file, tmp_path, apply, message) -> None:
    values = tiny_values(data_dir, backbone_file, tmp_path / "output")
    apply(values)
    with pytest.raises(InputError, match=message) as caught:
        train.run(config.from_dict(values))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "output").exists()


def test_weights_of_another_architecture(data_dir, tmp_path, finished) -> None:
    import torchvision

    path = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    with pytest.raises(InputError, match=r"model\.weights: .*squeezenet\.pth"):
        train.run(config.from_dict(tiny_values(data_dir, path, tmp_path / "output")))
    values = tiny_values(data_dir, "none", tmp_path / "output")
    values["data"]["aux"] = []
    values["model"]["aux_weights"] = [str(path)]
    with pytest.raises(InputError, match=r"model\.aux_weights: .*squeezenet\.pth"):
        train.run(config.from_dict(values))
    assert not (tmp_path / "output").exists()  # nothing is trained before all files are known to fit
    with pytest.raises(InputError, match=r"squeezenet\.pth"):
        checkpoint_accuracy(path, data_dir / "Shapes", backbone="resnet18", image_size=32, device="cpu")


def test_evaluating_with_what_does_not_fit(finished, data_dir, tmp_path) -> None:
    _, summary = finished
    path = Path(summary["averages"]["uniform"]["file"])
    with pytest.raises(InputError, match="no domain 'night'"):
        checkpoint_accuracy(path, data_dir / "Shapes", domain="night", device="cpu")
    for domain in ("one", "two"):
        (tmp_path / "Other" / domain / "cat").mkdir(parents=True)
        image = data_dir / "Shapes" / "dark" / "red" / "0.png"
        (tmp_path / "Other" / domain / "cat" / "0.png").write_bytes(image.read_bytes())
    with pytest.raises(InputError, match="classes"):
        checkpoint_accuracy(path, tmp_path / "Other", device="cpu")


def test_unreadable_images_are_left_out_listed_and_nothing_else_changes(
    data_dir, backbone_file, tmp_path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    victims = ("dark/red/0.png", "grey/blue/2.png", "light/green/1.png")
    (data / "Shapes" / victims[0]).write_bytes(b"")
    (data / "Shapes" / victims[1]).write_text("a text")
    damaged = bytearray((data / "Shapes" / victims[2]).read_bytes())
    start = damaged.index(b"IDAT") + 4
    damaged[start : start + 300] = bytes(300)  # whole by its ends
    (data / "Shapes" / victims[2]).write_bytes(damaged)
    values = tiny_values(data, backbone_file, tmp_path / "output")
    values["data"] |= {"on_bad_image": "skip", "aux": []}
    values["train"]["runs"] = 1
    console = Console(file=io.StringIO())
    summary = train.run(config.from_dict(values), console)
    assert "left out 3 images of Shapes, the first dark/red/0.png, which is empty" in console.file.getvalue()
    assert summary["left_out"] == {"images": 3, "file": str(tmp_path / "output" / "left_out.json")}
    listed = json.loads((tmp_path / "output" / "left_out.json").read_text())["Shapes"]["images"]
    assert tuple(listed) == victims
    assert listed["grey/blue/2.png"] == "is not an image"
    assert summary["averages"]["uniform"]["test"] * 14 == pytest.approx(
        round(summary["averages"]["uniform"]["test"] * 14)
    )  # of the 15 images of the test domain, one is left out
    first, *_ = closing_lines(summary, str(data))
    assert first == f"3 images were left out as unreadable, listed in {summary['left_out']['file']}."
    result = checkpoint_accuracy(
        Path(summary["averages"]["uniform"]["file"]),
        data / "Shapes",
        domain="grey",
        device="cpu",
        on_bad_image="skip",
    )
    assert result["domains"]["grey"]["accuracy"] == summary["averages"]["uniform"]["test"]
    assert list(result["left_out"].values()) == ["is not an image"]

    # Continuing with the same files decodes nothing again; with others, the runs would not belong together.
    again = Console(file=io.StringIO())
    train.run(config.from_dict(values), again)
    assert "already done" in again.file.getvalue()
    shutil.copy(data_dir / "Shapes" / victims[0], data / "Shapes" / victims[0])
    with pytest.raises(InputError, match=r"left out other images of Shapes .*dark/red/0\.png"):
        train.run(config.from_dict(values))


def test_split_without_some_images_is_the_split_without_them(data_dir, backbone_file, tmp_path) -> None:
    values = tiny_values(data_dir, backbone_file, tmp_path / "whole")
    whole = Tasks(config.from_dict(values), torch.device("cpu"), Display(Console(file=io.StringIO())))
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    for name in ("0.png", "3.png"):
        (data / "Shapes" / "dark" / "green" / name).write_bytes(b"")
    values["data"] |= {"dir": str(data), "on_bad_image": "skip"}
    partial = Tasks(config.from_dict(values), torch.device("cpu"), Display(Console(file=io.StringIO())))
    assert partial.datasets["Shapes"].domains[0].left_out.tolist() == [5, 8]
    for trial in range(3):
        for domain in range(3):
            for full, rest in zip(
                whole.split("Shapes", domain, trial), partial.split("Shapes", domain, trial), strict=True
            ):
                lost = {5, 8} if domain == 0 else set()
                assert rest.tolist() == [index for index in full.tolist() if index not in lost]
    images, labels = partial.images("Shapes", 0)
    assert len(images) == len(labels) == 13
    everything, all_labels = whole.images("Shapes", 0)
    kept = partial.datasets["Shapes"].domains[0].usable()
    assert torch.equal(images.tensor(), everything.tensor()[kept])
    assert torch.equal(labels, all_labels[kept])


def test_a_split_that_images_left_out_empty_in_a_later_trial(data_dir, backbone_file, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    values = tiny_values(data, backbone_file, tmp_path / "output")
    values["data"] |= {"on_bad_image": "skip", "aux": []}
    values["train"]["trials"] = 2
    whole = Tasks(config.from_dict(values), torch.device("cpu"), Display(Console(file=io.StringIO())))
    for index in whole.split("Shapes", 0, 1)[1]:
        Path(whole.datasets["Shapes"].domains[0].paths[index]).write_bytes(b"")
    with pytest.raises(
        InputError, match="of domain 'dark' of dataset Shapes for training and 0 for validation"
    ):
        train.run(config.from_dict(values))
    values["train"]["trials"] = 1
    partial = Tasks(config.from_dict(values), torch.device("cpu"), Display(Console(file=io.StringIO())))
    partial.check_split("Shapes", 1)


def test_a_data_set_of_the_paper_that_is_not_as_published_is_said(data_dir, backbone_file, tmp_path) -> None:
    shutil.copytree(data_dir / "Shapes", tmp_path / "data" / "PACS")
    values = tiny_values(tmp_path / "data", backbone_file, tmp_path / "output")
    values["data"] |= {"target": "pacs", "aux": []}
    console = Console(file=io.StringIO())
    Tasks(config.from_dict(values), torch.device("cpu"), Display(console))
    assert console.file.getvalue() == (
        "PACS is not as published: its domains are dark, grey, light, art_painting, cartoon, photo, sketch "
        "are published\n"
    )


def test_unreadable_files_are_not_images_that_two_data_sets_share(data_dir, backbone_file, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    for place in ("Shapes/dark/red", "Near/one/red"):
        (data / place / "0.png").write_bytes(b"")
    values = tiny_values(data, backbone_file, tmp_path / "output")
    values["data"] |= {"on_bad_image": "skip", "aux": ["Near"]}
    tasks = Tasks(config.from_dict(values), torch.device("cpu"), Display(Console(file=io.StringIO())))
    assert [len(record["images"]) for record in tasks.left_out.values()] == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_shared_images(tasks.datasets, "Shapes", 1)
