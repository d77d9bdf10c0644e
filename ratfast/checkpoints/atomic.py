"""Writing a file so that its name holds the old content or the complete new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ratfast.errors import InputError

TEMPORARY_FILES = ".ratfast-*.tmp"
"""Pattern of the temporary files' names; only a process that was killed leaves one behind."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file next to `path` that takes its name when the block ends without an error.

    The data are on the disk before the name changes. On any error the temporary file is removed and whatever
    `path` was before is untouched. A symbolic link is followed, so that its target is replaced.

    Args:
        path: the file to create or replace.

    Yields:
        The temporary file, opened for binary writing (and seekable).

    Raises:
        InputError: the folder does not exist or may not be written to, or `path` is not an ordinary file.
        OSError: the file could not be written, such as on a full disk; names `path`.
    """
    if not os.fspath(path):
        raise InputError("the name of the file to write is empty")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is not an ordinary file, so it cannot be replaced by a checkpoint")
    if not target.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {target.parent} does not exist")
    temporary = target.parent / TEMPORARY_FILES.replace("*", os.urandom(8).hex())
    try:
        # Not by tempfile, whose files only their owner may read: this one is the result.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        raise InputError(f"{path} cannot be written: no permission to write to {target.parent}") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InputError(f"{path} cannot be written: {target.parent} is read-only") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def atomic_files(paths: Sequence[str | os.PathLike[str]]) -> Iterator[list[BinaryIO]]:
    """`atomic_file` for several files: none takes its name before the data of all are on the disk."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_file(path)) for path in paths]
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # The new name itself survives a power cut only once the folder is on the disk. Some file systems cannot.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
