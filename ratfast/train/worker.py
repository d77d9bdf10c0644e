"""A worker: a process that carries out tasks of a plan one after another, as the command that started it tells it.

It keeps what tasks share, such as decoded images, from one to the next. On SIGTERM or SIGHUP, and when the command is
gone, it saves the state of the training it is at and ends. Messages go through a socket: tasks to the worker, events
from it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ratfast.train.progress import RunState, View

if TYPE_CHECKING:
    from ratfast.train.context import Shared

_ENDING = (signal.SIGTERM, signal.SIGHUP)

EVENTS_PER_SECOND = 5.0
"""At most so often is it said how far a training or anything else is."""


class Terminated(BaseException):
    """The process is to end: the state of its training is saved on the way."""


@dataclass(frozen=True)
class Event:
    """What a worker tells.

    Attributes:
        kind: `"done"`, `"failed"`, or a method of `View`.
        values: its arguments.
    """

    kind: str
    values: tuple[Any, ...] = ()


class RelayedView(View):
    """Tells another process what goes on, not oftener than makes sense.

    Args:
        send: takes an event there.
        clock: seconds.
    """

    def __init__(self, send: Callable[[Event], None], clock: Callable[[], float] = time.monotonic):
        self._send = send
        self._clock = clock
        self._sent: dict[str, float] = {}
        self._held: dict[str, RunState] = {}

    def say(self, line: str) -> None:
        """Sends it."""
        self._send(Event("say", (line,)))

    def show(self, run: RunState) -> None:
        """Sends it, unless one was sent just now."""
        if self._too_soon(run.name):
            self._held[run.name] = run
        else:
            self._held.pop(run.name, None)
            self._send(Event("show", (run,)))

    def end(self, name: str) -> None:
        """Sends the last state and that it is the last."""
        if name in self._held:
            self._send(Event("show", (self._held.pop(name),)))
        self._sent.pop(name, None)
        self._send(Event("end", (name,)))

    def count(self, name: str, done: int, total: int) -> None:
        """Sends it, unless one was sent just now."""
        if done >= total or not self._too_soon(name):
            self._send(Event("count", (name, done, total)))
        if done >= total:
            self._sent.pop(name, None)

    def _too_soon(self, name: str) -> bool:
        now = self._clock()
        if now - self._sent.get(name, -1e9) < 1 / EVENTS_PER_SECOND:
            return True
        self._sent[name] = now
        return False


def main(descriptor: int) -> None:
    """Serves the command at the other end of a socket until it sends None or is gone."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, _terminate)
    connection = Connection(descriptor)
    threading.Thread(target=_watch, args=(descriptor,), name="ratfast-parent", daemon=True).start()
    sending = threading.Lock()  # warnings come from any thread

    def send(event: Event) -> None:
        # That nobody is there any more is for `_watch` to say, at a moment at which the state is saved.
        with sending, contextlib.suppress(OSError):
            connection.send(event)

    try:
        view = RelayedView(send)
        warnings.showwarning = lambda message, *where, **others: view.say(
            f"ratfast: warning: {' '.join(str(message).split())}"
        )
        _serve(connection, send, view)
    except (Terminated, EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(128 + signal.SIGTERM)


def _serve(connection: Connection, send: Callable[[Event], None], view: View) -> None:
    from ratfast.train.context import open_context
    from ratfast.train.failures import failure_of
    from ratfast.train.store import open_store
    from ratfast.train.work import carry_out_and_keep, kernels

    shared: Shared = connection.recv()
    with kernels(shared.recipe):
        context = open_context(shared, open_store(shared.recipe), view)
        while (task := connection.recv()) is not None:
            try:
                carry_out_and_keep(task, context)
            except Exception as error:
                failure = failure_of(error)
                send(Event("failed", (failure,)))
                if not failure.input_is_wrong:
                    return  # whatever state the process is in, the next task gets a new one
            else:
                send(Event("done"))


def _terminate(number: int, frame: object) -> None:
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)  # once is enough; what is saved meanwhile is to be whole
    raise Terminated


def _watch(descriptor: int) -> None:
    """Ends this process as SIGTERM does once the other end of the socket is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP)
    while not any(state & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, state in poll.poll()):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
