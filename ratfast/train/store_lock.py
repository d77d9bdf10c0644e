"""One command at a time in a store, wherever it runs.

Nothing at a URL can be locked. A command writes its name there, with a heartbeat; one that finds another's name
watches for three heartbeats before it writes its own, and looks once more whether it is still there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from ratfast.errors import InputError
from ratfast.train.lock import LOCK, Holder, decode, encode, this_process
from ratfast.train.remote import Remote, StoreError

BEAT_SECONDS = 10.0
"""Between two heartbeats; longer than in a folder, as each is a request that may be paid for."""


def find_holder(remote: Remote) -> Holder | None:
    """The process that says it holds the store."""
    return decode(remote.read(LOCK, patient=False) or b"")[0]


class Heart:
    """Writes this process's name into the store again and again, in a thread.

    Attributes:
        holder: this process.
        successor: who has taken the store meanwhile, as this process had not been heard of; mostly None.
    """

    def __init__(self, remote: Remote):
        self.holder = this_process()
        self.successor: Holder | None = None
        self._remote = remote
        self._beat = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ratfast-store-lock", daemon=True)
        self._write()

    def start(self) -> None:
        """Begins to beat."""
        self._thread.start()

    def end(self) -> None:
        """Takes the name away, so that the next command need not watch."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(StoreError, FileNotFoundError):
            if find_holder(self._remote) == self.holder:
                self._remote.remove([LOCK], patient=False)

    def _write(self) -> None:
        self._beat += 1
        self._remote.write(LOCK, encode(self.holder, self._beat), patient=False)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(StoreError):  # the next may get there
                found = find_holder(self._remote)
                if found not in (None, self.holder):
                    self.successor = found
                    return
                self._write()


@contextlib.contextmanager
def held(remote: Remote, ended: Holder | None, say: Callable[[str], None]) -> Iterator[Heart]:
    """Holds a store for one command.

    Args:
        remote: the store.
        ended: a process that is known to have ended; None if none is.
        say: told what is waited for.

    Raises:
        InputError: another command holds it.
        StoreError: it cannot be read or written.
    """
    text = remote.read(LOCK, patient=False)  # what is wrong here is mostly the user's mistake
    left, _ = decode(text or b"")
    if left is not None and left != ended:
        say(f"watching for {3 * BEAT_SECONDS:.0f} s whether {left}, still writes to {remote.url}")
        for _ in range(3):
            time.sleep(BEAT_SECONDS)
            now = remote.read(LOCK)
            if now is None:
                break
            if now != text:
                raise in_use(remote, decode(now)[0])
    heart = Heart(remote)
    try:
        time.sleep(BEAT_SECONDS / 5)
        found = find_holder(remote)
        if found != heart.holder:  # began in the same moment
            raise in_use(remote, found)
        heart.start()
        yield heart
    finally:
        heart.end()


def in_use(remote: Remote, holder: Holder | None) -> InputError:
    """The error that says who else writes to a store."""
    who = "" if holder is None else f" ({holder})"
    return InputError(
        f"another ratfast-train is writing to the store {remote.url}{who}, expected one at a time"
    )
