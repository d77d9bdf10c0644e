"""Entry points of the command line: `ratfast` with its subcommands, and `ratfast-train`.

Exit codes: 0 done, 2 the user's input is wrong (one sentence on stderr), 130 interrupted, 143 terminated, 129 hung up
(the terminal was closed or the connection lost), 1 anything else.
A subcommand's module is imported when that subcommand is invoked, so that help costs nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

import click

from ratfast.cli.context import CONTEXT, RESUMABLE
from ratfast.errors import InputError, UnfinishedError
from ratfast.version import __version__

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "analyze": (
        "ratfast.cli.analyze",
        "Compare checkpoints: distances, curves, diversity, averages of some.",
    ),
    "average": ("ratfast.cli.average", "Average checkpoints into one."),
    "convert": ("ratfast.cli.convert", "Write a checkpoint in another format."),
    "data": ("ratfast.cli.data", "Data sets: what there is, whether it is whole, downloading it."),
    "evaluate": ("ratfast.cli.evaluate", "Evaluate a checkpoint on a data set."),
    "info": ("ratfast.cli.info", "Show versions, native libraries and devices."),
    "plan": ("ratfast.cli.plan", "Show what a training has to do, what is done, its time and cost."),
    "report": ("ratfast.cli.report", "Tables of runs as DomainBed's, or a page about trainings."),
}
"""Name: module, which holds a click command of that name, and one line of help."""

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Terminated(BaseException):
    """The process was asked to end: what is half-written is removed on the way.

    Args:
        number: SIGTERM, as from batch systems, or SIGHUP, when the terminal is gone.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class LazyGroup(click.Group):
    """A group whose subcommands are imported only when they are invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The subcommands' names."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a subcommand."""
        if cmd_name not in SUBCOMMANDS:
            return None
        return getattr(importlib.import_module(SUBCOMMANDS[cmd_name][0]), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the subcommand, or says which is nearest."""
        if args[0] not in SUBCOMMANDS and not args[0].startswith("-"):
            import difflib  # for this alone

            nearest = difflib.get_close_matches(args[0], SUBCOMMANDS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            ctx.fail(f"there is no command {args[0]!r}, expected one of {', '.join(SUBCOMMANDS)}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in SUBCOMMANDS.items()])


@click.group(cls=LazyGroup, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(__version__, prog_name="ratfast", message="%(prog)s %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Model Ratatouille made fast. Training is a command of its own: ratfast-train."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `ratfast`."""
    _run(lambda: group, "ratfast", args)


def train(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `ratfast-train`."""

    def command() -> click.Command:
        return importlib.import_module("ratfast.cli.train").train

    _run(command, "ratfast-train", args)


def _run(load: Callable[[], click.Command], prog: str, args: Sequence[str] | None) -> NoReturn:
    """Runs a command and exits with the code that the outcome calls for."""
    ctx, arguments = None, list(sys.argv[1:] if args is None else args)

    def go_on() -> str:
        """What an interrupted or failed command says last, where the same command again continues it."""
        resumable = ctx is not None and ctx.meta.get(RESUMABLE)
        return f"; to go on: {shlex.join([prog, *arguments])}" if resumable else ""

    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
                signal.signal(signal.SIGHUP, _hang_up_once())
        warnings.showwarning = _warning_printer()
        # Not `Command.main`, which would print an empty line of its own on an interruption.
        command = load()
        gc.freeze()  # what was imported stays, and need not be looked at again
        with command.make_context(prog, list(arguments)) as ctx:
            ctx.command.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(_flushed(stop.exit_code))
    except InputError as error:
        _fail(str(error), 2)
    except UnfinishedError as error:
        for line in error.lines[:-1]:
            _print(line)
        _fail(error.lines[-1] + go_on(), 2 if error.input_is_wrong else 1)
    except click.UsageError as error:
        _fail(_usage_sentence(error), 2)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted" + go_on(), 130)
    except _Terminated as stop:
        word = "hung up" if stop.number == signal.SIGHUP else "terminated"
        _fail(word + go_on(), 128 + stop.number)
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DENIED + _FULL:
            raise
        reason = error.strerror or os.strerror(error.errno)
        reason = reason[:1].lower() + reason[1:]
        where = f"cannot use {os.fsdecode(error.filename)}" if error.filename is not None else "cannot write"
        _silence_stdout()
        _fail(f"{where}: {reason}{go_on()}", 2 if error.errno in _DENIED else 1)
    sys.exit(0)


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated(number)


def _hang_up_once() -> Callable[[int, object], None]:
    """A handler that ends the process at the first SIGHUP: the kernel sends one, and the shell another."""
    came = False

    def hang_up(number: int, frame: object) -> None:
        nonlocal came
        if not came:
            came = True
            raise _Terminated(number)

    return hang_up


def _warning_printer() -> Callable[..., None]:
    """Shows warnings as the user of a command reads them: each text once, in a line without the place in the code."""
    shown = set()

    def show(message: Warning | str, *where: object, **others: object) -> None:
        line = f"ratfast: warning: {' '.join(str(message).split())}"
        if line not in shown:
            shown.add(line)
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    return show


def _usage_sentence(error: click.UsageError) -> str:
    sentence = error.format_message().strip().rstrip(".")
    return f"{sentence[:1].lower()}{sentence[1:]}" if sentence else "wrong usage, see --help"


def _fail(sentence: str, code: int) -> NoReturn:
    _print(sentence)
    sys.exit(code)


def _print(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"ratfast: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        return 1
    return code


def _silence_stdout() -> None:
    """Keeps the interpreter from failing once more when it flushes stdout at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
