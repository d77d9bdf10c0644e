"""From files and output folders to analyses: what is opened, on which images; the commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ratfast import InputError, config, protocol
from ratfast.analysis import experiments
from ratfast.analysis.networks import open_networks
from ratfast.analysis.whole import ANALYSIS, Settings, analyse_run
from ratfast.cli.main import group
from ratfast.data import scan

SMALL = Settings(points=3, draws=2, bootstrap=20)


def ran(*arguments) -> str:
    result = CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def files_of(folder: Path) -> list[Path]:
    return [Path(member["checkpoint"]) for member in summary_of(folder)["members"]]


def test_a_trainings_accuracies_are_those_of_its_summary(finished, data_dir):
    networks = open_networks([finished])
    summary = summary_of(finished)
    assert list(networks.names) == [member["name"] for member in summary["members"]]
    assert list(networks.sources) == [member["initialisation"] for member in summary["members"]]
    assert (networks.in_domain, networks.out_of_domain) == ("validation", "grey")
    subsets = experiments.subsets_by_size(networks, [4])
    found = experiments.domains(networks, subsets)
    expected = [[member["val"], member["test"]] for member in summary["members"]]
    np.testing.assert_allclose(found.networks, expected)
    uniform = summary["averages"]["uniform"]
    np.testing.assert_allclose(found.averages, [[uniform["val"], uniform["test"]]])
    fraction = config.load(finished / "recipe.toml").data.holdout_fraction
    dataset = scan(data_dir / "Shapes")
    validation = [
        dataset.domains[env].labels[protocol.split(len(dataset.domains[env]), fraction, 0, env)[1]]
        for env in (0, 2)
    ]
    np.testing.assert_array_equal(networks.predictor.sets["validation"].labels, np.concatenate(validation))


def test_all_analyses_of_a_training_are_repeatable_wherever_it_is(finished, tmp_path):
    found = analyse_run(finished, SMALL)
    stored = (finished / ANALYSIS).read_bytes()
    assert json.loads(stored) == found
    assert len(found["networks"]) == 4 and len(found["networks"][0]["sha256"]) == 64
    assert [len(curve["networks"]) for curve in found["curves"]] == [2]
    assert found["by_size"]["growth"]["grey"]["numbers"] == [1, 2, 3, 4]
    assert found["by_sources"]["growth"]["grey"]["numbers"] == [1, 2]
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    analyse_run(moved, SMALL)
    assert (moved / ANALYSIS).read_bytes() == stored
    (finished / ANALYSIS).unlink()


def test_threads_are_those_of_the_training(finished, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    recipe = moved / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[train]\n", "[train]\nthreads = 3\n"))
    before = torch.get_num_threads()
    try:
        open_networks([moved], members=[0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_files_on_chosen_domains(finished, data_dir):
    files = files_of(finished)[:2]
    where = {"data_dir": data_dir, "dataset": "Shapes"}
    networks = open_networks(files, **where)
    assert list(networks.predictor.sets) == ["dark", "grey", "light"]
    assert networks.in_domain is None and networks.names == tuple(map(str, files))
    with pytest.raises(InputError, match="--in-domain"):
        experiments.domains(networks, experiments.subsets_by_size(networks, [1]))
    networks = open_networks(files, domains=["1"], in_domains=["dark", "light"], **where)
    assert {name: len(images) for name, images in networks.predictor.sets.items()} == {
        "in-domain": 30,
        "grey": 15,
    }
    assert (networks.in_domain, networks.out_of_domain) == ("in-domain", "grey")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "Shapes"}, "--dataset is for checkpoint files"),
        ({"in_domains": ["dark"]}, "--in-domain is for checkpoint files"),
        ({"trial": 3}, "no members of trial 3"),
        ({"members": [0, 0]}, "different numbers from 0 to 3"),
        ({"members": [4]}, "different numbers from 0 to 3"),
        ({"domains": ["night"]}, "no domain 'night'"),
        ({"data_dir": "nowhere"}, "nowhere"),
    ],
)
def test_what_a_training_does_not_have(finished, options, message):
    with pytest.raises(InputError, match=message):
        open_networks([finished], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--data-dir and --dataset"),
        ({"dataset": "Shapes", "members": [0]}, "--members is for the output folder"),
        ({"dataset": "Shapes", "domains": ["dark", "0"]}, "named twice"),
        ({"dataset": "Near"}, None),
    ],
)
def test_what_files_do_not_have(finished, data_dir, options, message):
    file = finished / "averages/uniform.safetensors"
    if message is None:  # of as many classes: fine
        assert len(open_networks([file], data_dir=data_dir, **options).names) == 1
        return
    with pytest.raises(InputError, match=message):
        open_networks([file], data_dir=data_dir, **options)


def test_damaged_folders(finished, tmp_path):
    for name, text, message in (
        ("summary.json", "{", "cannot be read as JSON"),
        ("summary.json", "[]", "no JSON object"),
        ("summary.json", '{"members": [{}]}', "does not list its members"),
        ("recipe.toml", "", "lacks data.dir"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in ("summary.json", "recipe.toml"):
            shutil.copy(finished / file, copy)
        (copy / name).write_text(text)
        with pytest.raises(InputError, match=message):
            open_networks([copy])
    with pytest.raises(InputError, match=r"holds no summary\.json"):
        analyse_run(tmp_path)


def test_commands(finished, data_dir):
    curve = json.loads(ran("analyze", "curve", finished, "--members", "0,1", "--points", "3", "--json"))
    assert curve["networks"] == [member["name"] for member in summary_of(finished)["members"][:2]]
    assert set(curve["curves"]) == {"validation", "grey"}
    text = ran("analyze", "curve", finished, "--members", "0,1", "--points", "3")
    assert "barrier " in text and f"{curve['curves']['grey']['accuracies'][1]:.4f}" in text
    files = files_of(finished)[:2]
    where = ["--data-dir", data_dir, "--dataset", "Shapes", "--domain", "grey"]
    same = json.loads(ran("analyze", "curve", *files, *where, "--points", "3", "--json"))
    assert same["curves"]["grey"] == curve["curves"]["grey"]
    assert "linear CKA" in ran("analyze", "diversity", *files, *where)
    assert "ensemble" in ran("analyze", "growth", finished, "--sizes", "2,4", "--draws", "1")
    assert "sources" in ran("analyze", "growth", finished, "--by", "sources", "--draws", "1")
    assert "gain against" in ran("analyze", "ensemble", finished, "--members", "0,1,2", "--draws", "2")
    assert "in domain: validation" in ran("analyze", "domains", finished, "--members", "0,1,2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curve"], "expected two or three"),
        (["curve", "--members", "a"], "whole numbers"),
        (["growth", "--by", "sources", "--sizes", "1,2"], "expected one number"),
        (["growth", "--members", "0,2", "--by", "sources"], "two or more sources"),
        (["growth", "--sizes", "9"], "no 9 of 4"),
    ],
)
def test_commands_refuse(finished, arguments, message):
    command, *options = arguments
    with pytest.raises(InputError, match=message):
        ran("analyze", command, finished, *options)
