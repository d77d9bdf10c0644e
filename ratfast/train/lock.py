"""One command at a time in an output folder, on one machine or several.

The kernel's lock (`flock`) on the file `.lock` decides: it goes with the last process that holds the file open,
however that ended, and the workers of a command hold it open too. Not every shared file system carries it from
machine to machine. So the file also says who holds the folder, with a heartbeat: whoever gets the lock, or is on a
file system that has none, and finds another's name there watches for three heartbeats before it takes over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ratfast.checkpoints import TEMPORARY_FILES
from ratfast.errors import InputError

LOCK = ".lock"
"""Name of the file in the output folder."""

BEAT_SECONDS = 5.0
"""Between two heartbeats."""

PATIENCE_SECONDS = 60.0
"""How long the workers of a command that ends, or was killed, may take to save what they have and end."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TAKEN = (errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True)
class Holder:
    """The process that holds an output folder.

    Attributes:
        process: its number.
        host: the machine's name.
        since: local time of its start, `YYYY-MM-DD hh:mm:ss`.
    """

    process: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"

    def is_alive_here(self) -> bool:
        """Whether it is on this machine and runs."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def this_process() -> Holder:
    """The process that calls this, as a holder from now on."""
    return Holder(os.getpid(), socket.gethostname(), f"{datetime.now():%Y-%m-%d %H:%M:%S}")


def encode(holder: Holder, beat: int) -> bytes:
    """What a lock says: who holds it, and how often their heart has beaten."""
    return json.dumps({**asdict(holder), "beat": beat}).ljust(256).encode()


def decode(text: bytes) -> tuple[Holder | None, int]:
    """The holder and the heartbeat of what `encode` gave; None and 0 of anything else."""
    try:
        found = json.loads(text)
        return Holder(int(found["process"]), str(found["host"]), str(found["since"])), int(found["beat"])
    except (ValueError, KeyError, TypeError):
        return None, 0


def _read(descriptor: int) -> tuple[Holder | None, int]:
    """Who holds the folder by the file's word, and their last heartbeat."""
    try:
        return decode(os.pread(descriptor, 4096, 0))
    except OSError:
        return None, 0


def _reread(path: Path) -> tuple[Holder | None, int]:
    """The same from a file opened anew, as network file systems only then look for what others wrote."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None, 0
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def last_holder(folder: Path) -> Holder | None:
    """The process that says it holds the folder, even if it has ended since."""
    return _reread(folder / LOCK)[0]


def find_holder(folder: Path) -> Holder | None:
    """The process that says it holds the folder, unless it is of this machine and has ended."""
    holder, _ = _reread(folder / LOCK)
    if holder is None or (holder.host == socket.gethostname() and not holder.is_alive_here()):
        return None
    return holder


class _Heart:
    """Writes this process's name into the locked file again and again, in a thread."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._beat = 0
        self.holder = this_process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ratfast-lock", daemon=True)
        self.write()
        self._thread.start()

    def write(self) -> None:
        self._beat += 1
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, encode(self.holder, self._beat), 0)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self.write()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)  # nobody holds it: the next need not watch


@contextlib.contextmanager
def locked_output(folder: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[int]:
    """Holds the output folder for one command.

    Args:
        folder: made if need be.
        say: told what is waited for.

    Yields:
        The descriptor of the locked file: a process that has it open holds the folder too.

    Raises:
        InputError: the folder cannot be made or written, or another command holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(
            f"the output folder {folder} cannot be written ({error.strerror}), expected a folder to create or use"
        ) from error
    try:
        known = _lock(descriptor, folder, say)
        left, beat = _read(descriptor)
        if left is not None and not (known and left.host == socket.gethostname()):
            _watch(left, beat, folder, say)
        heart = _Heart(descriptor)
        try:
            if not known:
                _watch_for_others(heart.holder, folder)
            _remove_leftovers(folder)
            yield descriptor
        finally:
            _remove_leftovers(folder)
            heart.end()
    finally:
        os.close(descriptor)


def refuse_if_locked(folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Raises InputError if another command holds an output folder, before long preparations."""
    if (folder / LOCK).is_file():
        with locked_output(folder, say):
            pass


def _lock(descriptor: int, folder: Path, say: Callable[[str], None]) -> bool:
    """Takes the kernel's lock; False where the file system has none."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            if error.errno not in _TAKEN:
                raise
        holder, _ = _read(descriptor)
        ended = holder is not None and holder.host == socket.gethostname() and not holder.is_alive_here()
        if not ended or time.monotonic() > deadline:
            raise _in_use(folder, holder)
        if not told:
            say(f"waiting for the workers of {holder}, which was killed, to save what they have and end")
            told = True
        time.sleep(0.1)


def _remove_leftovers(folder: Path) -> None:
    """Removes what a process, or a worker of this one, left behind that was killed while it wrote."""
    for leftover in folder.rglob(TEMPORARY_FILES):
        leftover.unlink(missing_ok=True)


def _watch(holder: Holder, beat: int, folder: Path, say: Callable[[str], None]) -> None:
    """Raises InputError if `holder`, which the kernel does not know of, gives a sign of life."""
    say(f"watching for {3 * BEAT_SECONDS:.0f} s whether {holder}, still writes to {folder}")
    for _ in range(3):
        time.sleep(BEAT_SECONDS)
        if _reread(folder / LOCK) != (holder, beat):
            raise _in_use(folder, holder)


def _watch_for_others(own: Holder, folder: Path) -> None:
    """Raises InputError if, without a lock, another that began in the same moment has written over our name."""
    time.sleep(BEAT_SECONDS / 2)
    holder, _ = _reread(folder / LOCK)
    if holder != own:
        raise _in_use(folder, holder)


def _in_use(folder: Path, holder: Holder | None) -> InputError:
    who = "" if holder is None else f" ({holder})"
    return InputError(
        f"another ratfast-train is writing to the output folder {folder}{who}, expected one at a time"
    )
