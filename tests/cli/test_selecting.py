"""`ratfast average` by rules that choose among files."""

import pytest
import torch

from ratfast import InputError, checkpoints
from ratfast.cli.main import main
from ratfast.cli.selecting import SELECTIONS, selection_options


@pytest.fixture
def files(tmp_path):
    paths = []
    for index in range(4):
        paths.append(str(tmp_path / f"step{index}.safetensors"))
        checkpoints.save({"a": torch.tensor([10.0**index])}, paths[-1], {"val": index % 2, "val_loss": 1.0})
    return paths


def average(arguments, files, output):
    with pytest.raises(SystemExit) as stop:
        main(["average", *arguments, "-o", output, *files])
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "top-k", "-k", "2"], 505.0),
        (["--method", "top-k", "--scores", "4,3,2,1"], 1.0),
        (["--method", "ema", "--decay", "0"], 1000.0),
        (["--method", "ema", "--warmup"], None),
        (["--method", "swa", "--steps", "10,20,30,40", "--start", "20", "--every", "20"], 505.0),
        (["--method", "lawa", "--k", "2"], 550.0),
        (["--method", "swad", "--losses", "3,1,1,9", "--n-start", "2", "--n-end", "1"], 55.0),
        (["--method", "dagger"], 277.75),
    ],
)
def test_average(files, tmp_path, arguments, expected):
    output = str(tmp_path / "out.safetensors")
    assert average(arguments, files, output) == 0
    if expected is not None:
        assert checkpoints.load(output)["a"].item() == pytest.approx(expected)
    assert checkpoints.read_metadata(output)["method"] == arguments[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "lawa", "--decay", "0.5"], "--method lawa takes no --decay"),
        (["--method", "dagger", "--weights", "1,2"], "--method dagger takes no --weights"),
        (["--method", "uniform", "--n-start", "2"], "--method uniform takes no --n-start"),
        (["--method", "top-k", "--scores", "1,x"], "--scores is '1,x', expected numbers"),
        (["--method", "top-k", "--score-key", "acc"], "has no stored score"),
    ],
)
def test_wrong_input(files, tmp_path, capsys, arguments, message):
    assert average(arguments, files, str(tmp_path / "out.safetensors")) == 2
    assert message in capsys.readouterr().err


def test_every_option_belongs_to_a_rule():
    from ratfast.averaging.selection import SELECTIONS as rules

    taken = {name for rule in rules.values() for name in (rule.__kwdefaults__ or ())}
    assert {option.name for option in selection_options()} == taken | {"evaluate"}  # which is greedy's
    assert set(SELECTIONS) == set(rules)
    with pytest.raises(InputError):
        SELECTIONS["lawa"](["a"], {"steps": "1"})
