"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="the tests are not in a source tree")
def test_the_engines_alone() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    exec(blocks[1], names)
    assert names["stock"].keys() == names["models"][0].state_dict().keys()
    exec(blocks[0], names)
    members = [names["model"], *names["others"]]
    expected = sum(member.state_dict()["conv1.weight"].double() for member in members) / len(members)
    assert (names["soup"]["conv1.weight"] - expected).abs().max() < 1e-6
