"""Files in a folder that fsspec reaches by its URL: whole or not at all, with patience, and every error a sentence.

An object store makes an object visible when all of it has arrived. A file system does not: where files can be
renamed, one is written under a temporary name first. Free of torch; fsspec and what it needs for a scheme are
imported when a URL is opened.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ratfast.checkpoints import TEMPORARY_FILES
from ratfast.errors import InputError

T = TypeVar("T")

WAITS = (1.0, 3.0, 9.0)
"""Seconds between the trials of one operation, as a network may come back."""

_AT_A_TIME = 16
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


class StoreError(RuntimeError):
    """What is at the URL cannot be read or written now. Its text is a sentence that names the file and the reason."""


class Remote:
    """The folder at a URL. Names are relative to it, with `/` between their parts.

    Args:
        url: `scheme://...` of a folder, which need not exist.

    Attributes:
        url: the same, without a slash at the end.
        folder: the folder, if it is one of this machine's file system; else None.

    Raises:
        InputError: there is no such scheme, a package for it is missing, or the URL is not one of it.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/") if not url.endswith(":///") else url
        scheme = url.partition("://")[0].lower()
        try:
            from fsspec.core import url_to_fs
            from fsspec.spec import AbstractFileSystem
        except ImportError as error:
            raise InputError('output.store needs fsspec, expected pip install "ratfast[store]"') from error
        if urlsplit(url).password is not None:
            raise InputError(
                "output.store contains a password, which would be written into recipe.toml, expected a URL without: "
                "the driver takes keys and passwords from its own configuration or fsspec's"
            )
        if "::" in url or "://" not in url or (scheme in ("file", "local") and not _is_absolute(url)):
            raise InputError(
                f"output.store is {url!r}, expected the URL of one folder, such as s3://bucket/folder or "
                "file:///folder"
            )
        try:
            self._files, root = url_to_fs(url)
        except ImportError as error:
            raise InputError(
                f"output.store is {url!r}, and a package is missing: {_reason(error)}"
            ) from error
        except ValueError as error:
            raise InputError(
                f"output.store is {url!r} ({_reason(error)}), expected a scheme that fsspec knows, such as s3, gs, "
                "abfs, hdfs, sftp or file"
            ) from error
        except Exception as error:  # whatever a driver raises that connects at once
            raise InputError(f"output.store: {url} cannot be reached ({_reason(error)})") from error
        self._root = root.rstrip("/")
        self.folder = Path(root) if scheme in ("file", "local") else None
        self._renames = type(self._files).mv is not AbstractFileSystem.mv

    def sizes(self) -> dict[str, int]:
        """All files below the folder and their sizes in bytes; those half-written are left out."""

        def find() -> dict[str, Any]:
            self._files.invalidate_cache()  # others write there too
            try:
                return self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}

        found = {}
        for path, about in self._patiently("read", "", find).items():
            name = self._files._strip_protocol(path).removeprefix(self._root).lstrip("/")
            if about.get("type") == "file" and not _is_temporary(name):
                found[name] = int(about.get("size") or 0)
        return found

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is none."""

        def look() -> int:
            self._files.invalidate_cache()
            return int(self._files.info(self._path(name)).get("size") or 0)

        try:
            return self._patiently("read", name, look)
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.size(name) is not None

    def read(self, name: str, stop: int | None = None, *, patient: bool = True) -> bytes | None:
        """The content of a file, or its first `stop` bytes; None if there is none."""

        def read() -> bytes:
            return self._files.cat_file(self._path(name), start=None if stop is None else 0, end=stop)

        try:
            return self._patiently("read", name, read, patient)
        except FileNotFoundError:
            return None

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of small files, several at a time where the driver can; what is not there is left out."""
        names = list(names)
        contents = self.each(self.read, names)
        return {name: content for name, content in zip(names, contents, strict=True) if content is not None}

    def write(self, name: str, content: bytes, *, patient: bool = True) -> None:
        """Makes or replaces a small file."""
        self._put(name, lambda path: self._files.pipe_file(path, content), len(content), patient)

    def upload(self, path: Path, name: str, *, patient: bool = True) -> None:
        """Makes or replaces a file from a local one."""
        size = path.stat().st_size
        self._put(name, lambda place: self._files.put_file(str(path), place), size, patient)

    def download(self, name: str, path: Path) -> bool:
        """Makes or replaces a local file, and says whether there was one of this name to take it from."""
        temporary = path.parent / TEMPORARY_FILES.replace("*", os.urandom(8).hex())

        def get() -> None:
            self._files.invalidate_cache()
            size = self._files.info(self._path(name)).get("size")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._path(name), str(temporary))
            if size is not None and temporary.stat().st_size != size:
                raise OSError(f"{temporary.stat().st_size} of {size} bytes arrived")

        try:
            self._patiently("read", name, get)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except FileNotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def remove(self, names: Iterable[str], *, patient: bool = True) -> None:
        """Removes files that may be there."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._patiently("remove", name, lambda: self._files.rm_file(self._path(name)), patient)

        self.each(remove, [name for name in names if self.exists(name)])

    def remove_leftovers(self) -> None:
        """Removes what was left half-written by a process that was killed."""
        if self._renames:
            with contextlib.suppress(FileNotFoundError):
                for path in self._patiently("read", "", lambda: self._files.find(self._root)):
                    if _is_temporary(path):
                        self._files.rm_file(path)

    def each(self, function: Callable[[str], T], names: Iterable[str]) -> list[T]:
        """What a function gives for each name; several at a time where the driver can."""
        if not self._files.async_impl:
            return [function(name) for name in names]
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="ratfast-store") as threads:
            return list(threads.map(function, names))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, name: str, put: Callable[[str], Any], size: int, patient: bool) -> None:
        final = self._path(name)

        def whole() -> None:
            if not self._renames:
                put(final)
                self._require_size(final, size)
                return
            folder = final.rpartition("/")[0]
            self._files.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/{TEMPORARY_FILES.replace('*', os.urandom(8).hex())}"
            try:
                put(temporary)
                self._require_size(temporary, size)
                self._rename(temporary, final)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(temporary)
                raise

        try:
            self._patiently("write", name, whole, patient)
        except FileNotFoundError as error:  # such as a bucket that does not exist
            raise StoreError(f"cannot write {self.url}/{name}: {_reason(error)}") from error

    def _require_size(self, path: str, size: int) -> None:
        self._files.invalidate_cache()
        found = self._files.info(path).get("size")
        if found is not None and found != size:
            raise OSError(f"{found} of {size} bytes arrived")

    def _rename(self, source: str, target: str) -> None:
        try:
            self._files.mv(source, target)
        except Exception:
            # Some file systems rename to no name that is taken.
            if not self._files.exists(target):
                raise
            self._files.rm_file(target)
            self._files.mv(source, target)

    def _patiently(self, verb: str, name: str, operation: Callable[[], T], patient: bool = True) -> T:
        """Carries out an operation, again and again if it fails.

        Raises:
            FileNotFoundError: the driver says so.
            StoreError: it failed every time.
        """
        waits = list(WAITS) if patient else []
        while True:
            try:
                return operation()
            except FileNotFoundError:
                raise
            except Exception as error:  # drivers raise anything
                if not waits or isinstance(error, PermissionError) or getattr(error, "errno", 0) in _HOPELESS:
                    place = f"{self.url}/{name}" if name else self.url
                    raise StoreError(f"cannot {verb} {place}: {_reason(error)}") from error
            time.sleep(waits.pop(0))


def _is_absolute(url: str) -> bool:
    return url.partition("://")[2].startswith("/")


def _is_temporary(path: str) -> bool:
    return fnmatch.fnmatch(path.rpartition("/")[2], TEMPORARY_FILES)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] if text else type(error).__name__
