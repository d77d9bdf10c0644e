import io

import pytest
from rich.console import Console

from ratfast.train import progress
from ratfast.train.progress import Display, RunState


def lines(display_console: Console) -> list[str]:
    return display_console.file.getvalue().splitlines()


def test_without_a_terminal_there_are_lines_and_no_control_characters() -> None:
    console = Console(file=io.StringIO(), width=20)
    with Display(console) as display:
        display.expect(3)
        run = display.begin("probe/[Near]", 3)
        run.step(8)
        display.count("decoding", 1, 2)
        display.say("probe/[Near]: a line that is longer than the console is wide")
        run.end()
    assert lines(console) == ["probe/[Near]: a line that is longer than the console is wide"]


def test_without_a_terminal_a_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    with Display(console) as display:
        run = display.begin("probe/Near", 3)
        run.step(8)
        run.evaluated(0.25)
        now[0] = progress.HEARTBEAT_SECONDS + 1
        run.step(8)
        run.step(8)
        now[0] *= 2
        display.count("decoding", 64, 128)
    first, second = lines(console)
    assert first.startswith("probe/Near: update 2 of 3, ")
    assert first.endswith(" img/s, val 0.250")
    assert second == "decoding: 64 of 128"


def test_on_a_terminal_bars_come_and_go() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Display(console) as display:
        display.expect(2)
        run = display.begin("probe/Near", 2)
        run.step(8)
        display.count("decoding", 1, 2)
        assert [task.description for task in display.bars.tasks] == ["all runs", "probe/Near", "decoding"]
        assert [task.completed for task in display.bars.tasks] == [1, 1, 1]
        display.count("decoding", 2, 2)
        run.end()
        display.made("target/other", 1)
        assert [task.description for task in display.bars.tasks] == ["all runs"]
        assert display.bars.tasks[0].completed == 2


def test_several_runs_at_a_time_and_one_that_begins_again_before_where_it_was() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Display(console) as display:
        display.expect(20)
        for name, done in (("one", 4), ("two", 6), ("one", 5)):
            display.show(RunState(name, done, 10))
        assert [(task.description, task.completed) for task in display.bars.tasks] == [
            ("all runs", 11), ("one", 5), ("two", 6)
        ]  # fmt: skip
        display.end("two")  # its process died; another goes on from its last state
        display.end("two")
        display.show(RunState("two", 2, 10))
        assert display.bars.tasks[0].completed == 7


def test_without_a_terminal_the_signs_of_life_are_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=20)
    with Display(console) as display:
        display.show(RunState("one", 4, 10, "7 img/s", "val 0.5"))
        now[0] = progress.HEARTBEAT_SECONDS + 1
        display.show(RunState("two", 1, 10))
    assert lines(console) == ["one: update 4 of 10, 7 img/s, val 0.5; two: update 1 of 10"]
