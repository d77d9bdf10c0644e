"""A data set from where it is published into a folder that appears when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ratfast import catalogue
from ratfast.catalogue import Description
from ratfast.data.checking import Inspection, inspect
from ratfast.data.fetching.archives import DamagedArchive
from ratfast.data.fetching.assembling import assembler
from ratfast.data.fetching.download import Source, Watcher, download, require_space
from ratfast.data.fetching.sources import SOURCES
from ratfast.errors import InputError

WORK = ".ratfast-fetch-"
"""Beginning of the name of the folder, beside the data sets', where downloads lie until they are unpacked."""


def fetch(
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    given: Sequence[str] = (),
    keep: bool = False,
    watcher: Watcher | None = None,
) -> Inspection:
    """Download a data set and lay it out as DomainBed does.

    An interrupted call is continued by the next one: what was downloaded stays in a hidden folder in `data_dir`.
    The data set's own folder appears when every domain is there.

    Args:
        name: a name of the catalogue.
        data_dir: folder of all data sets; made if it is missing.
        given: files or addresses to take in place of the published ones, in their order, as many.
        keep: keep the downloaded files.
        watcher: told how far it is.

    Returns:
        What is there now, compared with the published counts.

    Raises:
        InputError: the data set is unknown or there already, another call is at it, its sources do not answer or
            send something else, or a domain is missing in what they send.
        OSError: it cannot be written, such as on a full disk.
    """
    entry = catalogue.find(name)
    if entry is None:
        known = ", ".join(entry.name for entry in catalogue.CATALOGUE)
        raise InputError(f"there is no data set {name!r} to fetch, expected one of {known}")
    watcher = watcher or Watcher()
    sources = _sources(entry, given)
    root = Path(data_dir).expanduser()
    target = catalogue.find_folder(root, entry.name)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError(
            f"{target} is there already, expected no such folder; `ratfast data check {entry.name} --data-dir "
            f"{root}` says whether it is whole"
        )
    work = root / f"{WORK}{entry.folder}"
    with _held(work):
        files = [_obtain(source, work, watcher) for source in sources]
        unpacked = work / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        require_space(work, sum(file.stat().st_size for file in files), f"unpacking {entry.name}")
        try:
            done = assembler(entry)(entry, files, unpacked, watcher)
        except DamagedArchive as error:
            if error.archive.parent == work:
                error.archive.unlink()  # so that the next call downloads it again
            raise
        found = inspect(unpacked, entry)
        if found.structure:
            raise InputError(
                f"the files of {entry.name} do not hold it: {found.structure[0]}; {target} is not made, and "
                f"what was downloaded stays in {work}"
            )
        if done.links:
            watcher.say(f"{done.links} links in the archives were passed over")
        os.replace(unpacked, target)
        if not keep:
            shutil.rmtree(work)
    return inspect(target, entry)


def _sources(entry: Description, given: Sequence[str]) -> list[Source]:
    published = SOURCES[entry.name]
    if not given:
        return list(published)
    if len(given) != len(published):
        names = ", ".join(source.file for source in published)
        raise InputError(
            f"{entry.name} is made of {len(published)} files ({names}), expected as many in their place, "
            f"but {len(given)} were given"
        )
    return [Source(source.file, (place,)) for source, place in zip(published, given, strict=True)]


def _obtain(source: Source, work: Path, watcher: Watcher) -> Path:
    """The file of a source: one that is here already, or a download."""
    place = source.urls[0]
    if "://" not in place:
        path = Path(place).expanduser()
        if not path.is_file():
            raise InputError(f"{path} is not a file, expected an archive or an address of one")
        return path
    try:
        return download(source, work, watcher)
    except InputError as error:
        raise InputError(
            f"{error}. With {source.file} from elsewhere, `ratfast data fetch --from FILE` goes on"
        ) from error


@contextlib.contextmanager
def _held(work: Path) -> Iterator[None]:
    """Holds the work folder for one process; the kernel lets go of it however the process ends."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{work} cannot be written: {(error.strerror or '').lower()}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another command is fetching into {work}, expected one at a time") from error
        yield
