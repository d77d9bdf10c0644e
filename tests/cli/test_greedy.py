"""`ratfast average --method greedy`, with a function of the user's as the judge."""

import pytest
import torch

from ratfast import checkpoints
from ratfast.cli.main import main

JUDGE = """
target = 2.0


def score(state):
    return -abs(state["a"].item() - target)


def broken(state):
    raise KeyError("head")


def text(state):
    return "good"


number = 3
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "judge_of_soups.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / f"run{value}.safetensors") for value in (1, 3, 9)]
    for path, value in zip(paths, (1.0, 3.0, 9.0), strict=True):
        checkpoints.save({"a": torch.tensor([value])}, path, {"val": 10 - value})
    return paths


def average(arguments, files, output):
    with pytest.raises(SystemExit) as stop:
        main(["average", "--method", "greedy", *arguments, "-o", output, *files])
    return stop.value.code


@pytest.mark.parametrize("ranking", [[], ["--scores", "3,2,1"], ["--score-key", "val"]])
def test_the_soup_is_written_with_its_log_and_can_be_made_again(files, tmp_path, capsys, ranking):
    output = str(tmp_path / "soup.safetensors")
    assert average(["--evaluate", "judge_of_soups:score", *ranking], files, output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [("accepted" in line, "refused" in line) for line in lines[:3]] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert checkpoints.load(output)["a"].item() == 2.0
    note = checkpoints.read_metadata(output)
    assert note["method"] == "greedy" and note["weights"] == [0.5, 0.5, 0.0]
    assert note["selection"]["members"] == files[:2] and len(note["selection"]["log"]) == 3

    second = str(tmp_path / "second.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["average", "--again", output, "-o", second])
    assert stop.value.code == 0
    with open(output, "rb") as one, open(second, "rb") as two:
        assert one.read() == two.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --evaluate MODULE:FUNCTION"),
        (["--evaluate", "judge_of_soups"], "expected MODULE:FUNCTION"),
        (["--evaluate", "no_such_module:score"], "'no_such_module', which is not to be found"),
        (
            ["--evaluate", "judge_of_soups:number"],
            "'number', which the module 'judge_of_soups' does not define",
        ),
        (["--evaluate", "judge_of_soups:text"], "returned 'good', expected a number"),
        (["--evaluate", "judge_of_soups:score", "--weights", "1,2,3"], "takes no --weights"),
        (["--evaluate", "judge_of_soups:score", "--scores", "1,2"], "2 scores were given for 3 models"),
        (["--evaluate", "judge_of_soups:score", "--score-key", "acc"], "has no stored score"),
    ],
)
def test_wrong_input(files, tmp_path, capsys, arguments, message):
    output = tmp_path / "soup.safetensors"
    assert average(arguments, files, str(output)) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
