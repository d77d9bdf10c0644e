"""One file over HTTP: resumed where it broke off, tried again with pauses, checked, and named when it is whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ratfast.data.fetching.http import Answer, Changed, Transient, open_url, words
from ratfast.errors import InputError

ATTEMPTS = 6
"""Tries without a byte of progress before giving up."""

FIRST_PAUSE_SECONDS = 1.0
"""Pause before the second try; it doubles with each further one."""

LONGEST_PAUSE_SECONDS = 60.0
"""No pause is longer, whatever a server asks for."""

SPACE_LEFT_BYTES = 64 * 2**20
"""What a download leaves free on the disk."""

_BLOCK = 2**20


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Watcher:
    """Who is told how far a long operation is.

    Attributes:
        progress: told what is done (a name), how much of it, and how much there is in all, if that is known.
        say: told of an event, in a sentence.
    """

    progress: Callable[[str, int, int | None], None] = _nothing
    say: Callable[[str], None] = _nothing


@dataclass(frozen=True)
class Source:
    """A file to download.

    Attributes:
        file: its name here.
        urls: where it is published, the first that has it being taken.
        checksum: `"md5:..."` or `"sha256:..."` as published; empty where none is.
    """

    file: str
    urls: tuple[str, ...]
    checksum: str = ""


def download(source: Source, folder: Path, watcher: Watcher) -> Path:
    """Download a file, continuing what an earlier call began.

    The file appears under its name when all of it is there and its checksum is right; until then it is
    `NAME.part`, beside `NAME.part.json`, which says of what it is a part.

    Args:
        source: the file.
        folder: where to put it.
        watcher: told of bytes, and of what is tried again.

    Returns:
        The file.

    Raises:
        InputError: no address has the file, the servers keep failing, the checksum is wrong, or there is not
            enough space for it.
        OSError: it cannot be written.
    """
    target = folder / source.file
    if target.is_file():
        return target
    failures = []
    for url in source.urls:
        try:
            _download_from(url, target, watcher)
            break
        except _Unavailable as error:
            failures.append(str(error))
    else:
        raise InputError("; ".join(failures))
    part = _part(target)
    _check(part, source)
    os.replace(part, target)
    _record(target).unlink(missing_ok=True)
    return target


class _Unavailable(Exception):
    """An address does not give the file."""


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def _download_from(url: str, target: Path, watcher: Watcher) -> None:
    part = _part(target)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _attempt(url, target, watcher)
            return
        except InputError as error:
            raise _Unavailable(str(error)) from error
        except Transient as error:
            reason, wait = str(error), error.wait
        after = part.stat().st_size if part.exists() else 0
        failures = 1 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise _Unavailable(
                f"{url} failed {failures} times in a row ({reason}); the same command again continues"
            )
        pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
        pause = min(max(pause, wait or 0.0), LONGEST_PAUSE_SECONDS)
        watcher.say(f"{target.name}: {reason}; trying again in {pause:.0f} s, from byte {after}")
        time.sleep(pause)


def _attempt(url: str, target: Path, watcher: Watcher) -> None:
    """Gets the rest of the file through one connection.

    Raises:
        Transient: it gave less; what it gave is kept, unless it does not belong to what was there.
    """
    try:
        _continue(url, target, watcher)
    except Changed:
        _part(target).unlink(missing_ok=True)
        raise


def _continue(url: str, target: Path, watcher: Watcher) -> None:
    part, start, version = _part(target), 0, ""
    known = _known(target, url)
    if known is not None:
        start, version = part.stat().st_size, known["version"]
    with open_url(url, start, version) as answer:
        total = None if known is None else known["total"]
        if answer.start > start or (answer.start and total not in (None, answer.total)):
            raise Changed("the server has another version of the file")
        if answer.complete:
            return
        if answer.total is not None:
            require_space(target.parent, answer.total - answer.start, target.name)
        with open(part, "r+b" if answer.start else "wb") as file:
            file.seek(answer.start)
            file.truncate()
            # Only now: what a record says must not be of an older part.
            record = {"url": url, "version": answer.version, "total": answer.total}
            _record(target).write_text(json.dumps(record), encoding="utf-8")
            _copy(answer, file, target.name, watcher)
            file.flush()
            os.fsync(file.fileno())


def _known(target: Path, url: str) -> dict | None:
    """Of what the part is there a part; None if there is none that this address can continue."""
    try:
        record = json.loads(_record(target).read_text(encoding="utf-8"))
        complete = {"url", "version", "total"} <= set(record) and isinstance(record["version"], str)
        return record if complete and record["url"] == url and _part(target).stat().st_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _copy(answer: Answer, file: IO[bytes], name: str, watcher: Watcher) -> None:
    """Copies the body to the file. If it ends too early, what came is kept."""
    end, failure = answer.start, ""
    while not failure:
        try:
            block = answer.body.read1(_BLOCK)  # what has come, rather than waiting for a whole block
        except http.client.IncompleteRead as error:
            block, failure = error.partial, "the connection ended too early"
        except (OSError, http.client.HTTPException) as error:
            block, failure = b"", words(error)
        try:
            file.write(block)
        except OSError as error:
            raise OSError(error.errno, error.strerror, file.name) from error
        end += len(block)
        watcher.progress(name, end, answer.total)
        if not block:
            break
    # Of a server that says neither how long the file is nor where it ends, the checksum or the archive tells.
    if failure or (answer.total is not None and end < answer.total):
        raise Transient(failure or "the connection ended too early")


def require_space(folder: Path, needed: int, name: str) -> None:
    """Check that a disk has space.

    Args:
        folder: where.
        needed: bytes.
        name: what for.

    Raises:
        OSError: it has not (ENOSPC); names the folder and both numbers.
    """
    free = shutil.disk_usage(folder).free - SPACE_LEFT_BYTES
    if needed > free:
        sentence = (
            f"no space for {name}: it needs {needed / 1e6:.0f} MB, {max(0, free) / 1e6:.0f} MB are free"
        )
        raise OSError(errno.ENOSPC, sentence, os.fspath(folder))


def _check(part: Path, source: Source) -> None:
    if not source.checksum:
        return
    kind, _, expected = source.checksum.partition(":")
    digest = hashlib.new(kind)
    with open(part, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        part.unlink()
        raise InputError(
            f"{source.file} has the {kind} {digest.hexdigest()}, expected {expected}: what came from "
            f"{_hosts(source.urls)} is not what was published, and has been deleted"
        )


def _hosts(urls: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(url.split("/")[2] for url in urls if "//" in url))
