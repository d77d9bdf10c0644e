"""Unpacking zip and tar archives that nobody has vouched for.

Files are made by this module alone, from names that it has checked, in a folder that it has just made: no name leads
out of the folder, no link and no device is made, no more is written than was allowed.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from ratfast.data.fetching.download import Watcher
from ratfast.errors import InputError

_BLOCK = 2**20
_MOST_MEMBERS = 2_000_000
_BYTES_FOR_ANY_ARCHIVE = 2**30
_TIMES_THE_ARCHIVE = 4  # images hardly pack
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)

Place = Callable[[PurePosixPath], Sequence[PurePosixPath]]
"""Says where, below the folder, a member of an archive goes: to no, one or several files."""


class DamagedArchive(InputError):
    """A file is no archive, or not a whole one.

    Attributes:
        archive: the file.
    """

    def __init__(self, sentence: str, archive: Path):
        super().__init__(sentence)
        self.archive = archive


class _Member(NamedTuple):
    name: str
    kind: str  # "file", "folder", "link" or "device"
    open: Callable[[], IO[bytes]]
    position: Callable[[], int]  # bytes of the archive read so far


class Unpacked(NamedTuple):
    """What was unpacked.

    Attributes:
        files: how many files were written.
        links: how many links of the archive were passed over.
    """

    files: int
    links: int


def unpack(archive: Path, folder: Path, place: Place, watcher: Watcher) -> Unpacked:
    """Unpack an archive into a folder.

    Args:
        archive: a zip or tar file, the latter packed by gzip, bzip2, xz or not at all.
        folder: where to; made if it is missing. Nothing else may write to it.
        place: where each member goes.
        watcher: told of the bytes of the archive that are dealt with.

    Raises:
        DamagedArchive: the file is not an archive, or a damaged one.
        InputError: it holds what an archive of images would not: names that lead out of the folder, devices, or far
            more than its own size. What was unpacked until then is there.
        OSError: a file cannot be written.
    """
    size = archive.stat().st_size
    allowed = _BYTES_FOR_ANY_ARCHIVE + _TIMES_THE_ARCHIVE * size
    files = links = written = 0
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(archive) as members:
        for number, member in enumerate(members):
            if number >= _MOST_MEMBERS:
                raise InputError(
                    f"the archive {archive} holds more than {_MOST_MEMBERS} files, expected fewer"
                )
            name = _checked_name(archive, member.name)
            if member.kind == "device":
                raise InputError(f"the archive {archive} holds the device {name}, expected files and folders")
            links += member.kind == "link"
            targets = place(name) if member.kind == "file" and name.parts else ()
            if targets:
                with member.open() as content:
                    paths = [folder / _checked_name(archive, str(target)) for target in targets]
                    written += _write(content, paths, allowed - written, archive)
                files += len(targets)
            watcher.progress(f"unpacking {archive.name}", min(member.position(), size), size)
    watcher.progress(f"unpacking {archive.name}", size, size)
    return Unpacked(files, links)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive, in its order; damage in it raises InputError."""
    try:
        with open(archive, "rb") as file:
            head = file.read(512)
            file.seek(0)
            if head.startswith(b"PK"):
                with zipfile.ZipFile(file) as opened:
                    yield _zip_members(opened)
            else:
                # As a stream: members are read in the archive's order, and memory does not grow with their number.
                # Not unpacked by tarfile itself, which does not look at gzip's checksum then.
                with _plain(file, head) as plain, tarfile.open(fileobj=plain, mode="r|") as opened:
                    yield _tar_members(opened, file)
                    _read_to_the_end(plain)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; damage has no number
            raise
        page = (
            ": it is a web page" if head.lstrip().startswith(b"<") else f" ({' '.join(str(error).split())})"
        )
        sentence = f"the archive {archive} cannot be unpacked{page}, expected a whole zip or tar file"
        raise DamagedArchive(sentence, archive) from error


def _plain(file: IO[bytes], head: bytes) -> IO[bytes]:
    """What a file that begins with `head` unpacks to."""
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    return file


def _read_to_the_end(plain: IO[bytes]) -> None:
    """Reads what follows a tar's end, for the checksum after it."""
    for _ in range(_BYTES_FOR_ANY_ARCHIVE // _BLOCK):
        if not plain.read(_BLOCK):
            return


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    done = 0
    for info in opened.infolist():
        mode = info.external_attr >> 16
        if info.orig_filename.endswith("/"):
            kind = "folder"
        elif stat.S_ISLNK(mode):
            kind = "link"
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            kind = "file"
        else:
            kind = "device"
        done += info.compress_size
        yield _Member(info.orig_filename, kind, lambda info=info: opened.open(info), lambda done=done: done)


def _tar_members(opened: tarfile.TarFile, file: IO[bytes]) -> Iterator[_Member]:
    for info in opened:
        if info.isreg():
            kind = "file"
        elif info.isdir():
            kind = "folder"
        else:
            kind = "link" if info.issym() or info.islnk() else "device"
        yield _Member(info.name, kind, lambda info=info: opened.extractfile(info), file.tell)
        opened.members.clear()  # which it would otherwise keep, all of them


def _checked_name(archive: Path, name: str) -> PurePosixPath:
    """A member's name as a relative path that stays below the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
        raise InputError(
            f"the archive {archive} holds the name {name!r}, which leads out of its folder; "
            "nothing of the kind is unpacked"
        )
    return path


def _write(content: IO[bytes], paths: Sequence[Path], allowed: int, archive: Path) -> int:
    """Writes a member to each of the paths; returns the bytes written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    written = 0
    with contextlib.ExitStack() as opened:
        files = []
        for path in paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.append(opened.enter_context(os.fdopen(os.open(path, flags, 0o644), "wb")))
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise InputError(
                    f"the archive {archive} has a part of {path} both as a file and as a folder"
                ) from error
        while block := content.read(_BLOCK):
            written += len(block) * len(files)
            if written > allowed:
                raise InputError(
                    f"the archive {archive} unpacks to more than {_TIMES_THE_ARCHIVE} times its size, "
                    "expected images, which hardly pack"
                )
            for file in files:
                file.write(block)
    return written
