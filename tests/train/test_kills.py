"""Killed at random moments and started again, a plan ends in the same files to the byte.

RATFAST_KILLS says how often, such as 200; `kills.py` is the same without pytest.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("moved", ["0", "0.7"])
def test_killed_at_random_moments_it_ends_the_same(moved) -> None:
    kills = int(os.environ.get("RATFAST_KILLS", "6"))
    script = str(Path(__file__).with_name("kills.py"))
    command = [sys.executable, script, "--kills", str(kills), "--moved", moved]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kills"] >= kills
