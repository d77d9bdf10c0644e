"""Images of the target among those of the auxiliary data sets, found by their content."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from ratfast.data import Domain, DomainDataset

_ENDS = 4096  # bytes of a file's beginning and end that are compared first


def warn_of_shared_images(datasets: Mapping[str, DomainDataset], target: str, test_env: int) -> None:
    """Warns of each auxiliary data set that holds files of the target, whatever they are called.

    Files are compared by size, then by their ends, then whole, so that hardly more is read than what is shared.

    Args:
        datasets: by name.
        target: name of the target data set.
        test_env: index of its held-out domain, whose images matter most.
    """
    own = {path: index for index, domain in enumerate(datasets[target].domains) for path in _used(domain)}
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in own:
        by_size[_size(path)].append(path)
    for name, dataset in datasets.items():
        if name == target:
            continue
        shared = {}
        for domain in dataset.domains:
            for path in _used(domain):
                twin = next((other for other in by_size.get(_size(path), ()) if _equal(path, other)), None)
                if twin is not None:
                    shared[twin] = path
        if shared:
            held_out = sum(own[path] == test_env for path in shared)
            example, other = next(iter(shared.items()))
            warnings.warn(
                f"{len(shared)} of the {len(own)} images of the target {target} are also in the auxiliary data set "
                f"{name} ({held_out} of the held-out domain; {example} is {other}): auxiliary trainings see them with "
                "their labels, so accuracies on the target say less than they seem to",
                stacklevel=2,
            )


def _used(domain: Domain) -> list[str]:
    """The files of a domain without those left out: two empty ones are no shared image."""
    return [domain.paths[index] for index in domain.usable()]


def _equal(path: str, other: str) -> bool:
    return _ends(path) == _ends(other) and _digest(path) == _digest(other)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


@lru_cache(maxsize=1 << 16)  # files of common sizes are met often
def _ends(path: str) -> bytes:
    """A hash of a file's first and last bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(_ENDS)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _ENDS))
            return hashlib.blake2b(head + file.read(_ENDS), digest_size=16).digest()
    except OSError:
        return os.fsencode(path)


def _digest(path: str) -> bytes:
    return hashlib.blake2b(Path(path).read_bytes()).digest()
