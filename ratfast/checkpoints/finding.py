"""Which checkpoint files are meant by what a user names: files, folders, patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ratfast.checkpoints.header import PICKLED_SUFFIXES
from ratfast.errors import InputError

INDEX_SUFFIX = ".index.json"
"""How the index of a checkpoint in shards ends, as in model.safetensors.index.json."""

_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES)
_SHARD = re.compile(r"-\d+-of-\d+\.")


def find_checkpoints(patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Checkpoint files by what the user names.

    A file stands for itself. A folder stands for the index in it (`*.index.json`), or else for all checkpoint files
    in it, sorted naturally (`run2` before `run10`). Other names are patterns of `glob` (`**` reaches subfolders),
    whose matches are sorted likewise.

    Args:
        patterns: what was named, in the order that is kept.

    Returns:
        The files; one that is meant twice is there twice.

    Raises:
        InputError: a name is empty or matches nothing, or a folder holds no checkpoint.
    """
    names = [patterns] if isinstance(patterns, (str, os.PathLike)) else patterns
    return [path for name in names for path in _find(name)]


def _find(name: str | os.PathLike[str]) -> list[Path]:
    if not os.fspath(name):  # which pathlib takes for the working directory
        raise InputError("the name of a checkpoint is empty, expected a file, a folder or a pattern")
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or not glob.has_magic(os.fspath(name)):
        if not path.exists():
            raise InputError(f"{path} does not exist")
        return [path]
    matches = [Path(match) for match in glob.glob(os.fspath(name), recursive=True)]
    found = sorted((match for match in matches if match.is_file()), key=_natural)
    if not found:
        raise InputError(f"{os.fspath(name)} matches no file")
    return found


def _in_folder(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    indices = sorted((path for path in files if path.name.endswith(INDEX_SUFFIX)), key=_natural)
    if indices:
        # The same model in both formats, as model hubs offer it, is one checkpoint.
        safe = [path for path in indices if ".safetensors" in path.name]
        return (safe or indices)[:1]
    found = sorted((path for path in files if path.name.lower().endswith(_SUFFIXES)), key=_natural)
    if not found:
        raise InputError(
            f"the folder {folder} holds no checkpoint ({', '.join(_SUFFIXES)} or *{INDEX_SUFFIX})"
        )
    if any(_SHARD.search(path.name) for path in found):
        raise InputError(f"the folder {folder} holds shards of a checkpoint without their *{INDEX_SUFFIX}")
    return found


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts digits by their number; text before and after in the usual order."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", os.fspath(path))
    ]
