"""What an output folder holds, without what differs from time to time; and the processes of a command."""

import hashlib
import json
import os
from pathlib import Path

TIMES = ("seconds", "images_per_second")
APART = (".lock", "recipe.toml")  # the recipe says how many workers there were


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def fingerprint(output: Path) -> dict[str, str]:
    """By name of every file and link of an output folder, a hash of its content without measured times."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.is_symlink():
            found[name] = str(os.readlink(path))
        elif path.is_file() and name not in APART:
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_times(json.loads(content))).encode()
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMES}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value
