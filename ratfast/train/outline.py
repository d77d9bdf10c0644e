"""How far tasks have come by an output folder and a store together, seen in a folder that holds next to no data.

Records are whole in it; of weights and states there is the header alone, and a hole of the size of the rest. So
whatever looks at an output folder to say what is done can look at this one. Free of torch.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from ratfast.checkpoints.header import HEADER_LIMIT
from ratfast.train import records
from ratfast.train.plan import Job, Task
from ratfast.train.remote import Remote
from ratfast.train.state import average_file, failure_file, is_done, snapshot_file, updates_made

_FIRST_BYTES = 1 << 16  # which mostly hold a header


@contextlib.contextmanager
def outlined(tasks: Collection[Task], output: Path, remote: Remote) -> Iterator[Path]:
    """A temporary folder in which tasks are as far as in the one of the two places where they are further.

    Raises:
        StoreError: the store cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="ratfast-outline-") as text:
        folder, output = Path(text), output.absolute()
        there = remote.sizes()
        wanted: list[str] = []
        for task in tasks:
            if is_done(task, output):
                _link_done(task, output, folder)
                continue
            if isinstance(task, Job) and f"{task.name}/{records.DONE}" in there:
                wanted += [f"{task.name}/{records.RUN}", f"{task.name}/{records.DONE}"]
            elif isinstance(task, Job):
                _link_state(task, output, folder, remote, there)
            elif f"{task.name}.json" in there:
                wanted.append(f"{task.name}.json")
                _write(average_file(task, folder), b"")
            _link(failure_file(task, output), failure_file(task, folder))
            name = failure_file(task, Path()).as_posix()
            if name in there and not failure_file(task, folder).exists():
                wanted.append(name)
        for name, content in remote.read_all(wanted).items():
            _write(folder / name, content)
        yield folder


def _link_done(task: Task, output: Path, folder: Path) -> None:
    if isinstance(task, Job):
        _link(output / task.name, folder / task.name)
        return
    for suffix in (".safetensors", ".json"):
        _link(average_file(task, output).with_suffix(suffix), average_file(task, folder).with_suffix(suffix))


def _link_state(job: Job, output: Path, folder: Path, remote: Remote, there: dict[str, int]) -> None:
    """Of the two states of a training the one with more updates."""
    path, name = snapshot_file(job, folder), snapshot_file(job, Path()).as_posix()
    if name in there:
        write_outline(remote, name, there[name], path)
    if updates_made(job, output) >= updates_made(job, folder):
        path.unlink(missing_ok=True)
        _link(snapshot_file(job, output), path)


def write_outline(remote: Remote, name: str, size: int, path: Path) -> None:
    """Writes a safetensors file of the store with a hole in place of its data."""
    content = remote.read(name, _FIRST_BYTES) or b""
    header = 8 + min(int.from_bytes(content[:8], "little"), HEADER_LIMIT)
    if header > len(content) < size:
        content = remote.read(name, header) or b""
    _write(path, content[:header])
    with path.open("r+b") as file:
        file.truncate(size)


def _link(source: Path, place: Path) -> None:
    if source.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
