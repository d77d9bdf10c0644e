"""The README's Python runs as it stands there, and its commands are spelled right."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

import ratfast
from ratfast.cli.main import group

README = Path(__file__).parents[1] / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="the tests are not in a source tree")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(index: int) -> dict:
    names: dict = {}
    exec(blocks("python")[index], names)
    return names


def test_the_engines_alone() -> None:
    names = run(0)
    members = [names["model"], *names["others"]]
    expected = sum(member.state_dict()["conv1.weight"].double() for member in members) / len(members)
    assert (names["soup"]["conv1.weight"] - expected).abs().max() < 1e-6


def test_what_goes_along_with_a_step() -> None:
    names = run(1)
    model, averaged = names["model"], names["averaged"]
    state = names["optimizer"].state[model.weight]
    assert torch.equal(model.weight, state["master_param"].bfloat16())
    assert not model.weight.grad.any()
    assert averaged["weight"].dtype == torch.bfloat16
    assert names["optimizer"].grad_norm > 1.0


def test_averaging() -> None:
    names = run(2)
    one, two, three = (model.weight.detach().double() for model in names["models"])
    torch.testing.assert_close(names["mean"]["weight"].double(), (one + two + three) / 3)
    torch.testing.assert_close(names["task"]["weight"].double(), two + three - one)
    members = [names["models"][index].state_dict() for index in names["greedy"].members]
    torch.testing.assert_close(names["chosen"], ratfast.average(members))
    assert names["stock"].keys() == names["models"][0].state_dict().keys()


def test_averaging_along_a_run() -> None:
    names = run(3)
    for averaged in (names["swa"].module, names["ema"].module):
        torch.testing.assert_close(averaged.weight, names["model"].weight)
    assert len(blocks("python")) == 4


def commands() -> list[list[str]]:
    lines = "".join(blocks("console")).splitlines() if README.is_file() else []
    return [shlex.split(line[2:], comments=True)[1:] for line in lines if line.startswith("$ ratfast ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    """Names of options and subcommands; the files are not there."""
    command: click.Command = group
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)
    command.make_context(name, words)
