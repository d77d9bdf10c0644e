"""What of a data set is there, what is missing, and what cannot be decoded, against the published counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ratfast import catalogue
from ratfast.catalogue import Description, Edition
from ratfast.data.files import BadImage, Progress, find_bad_images
from ratfast.data.folders import DomainDataset, class_images, subfolders
from ratfast.errors import InputError


@dataclass(frozen=True)
class Inspection:
    """What was found of a data set.

    Attributes:
        name: its name; that of the folder if the catalogue has none.
        folder: its folder.
        known: it is in the catalogue, so that there is something to compare with.
        counts: images by domain and class, as they are there.
        edition: the published counts that it has, or those that it comes nearest to; None if none are known.
        structure: what is wrong with the domains and classes, a sentence each.
        differences: where the images are more or fewer than published, a sentence each.
        bad: files that cannot be used; None if no image was looked at.
        decoded: they were looked for by decoding every image.
    """

    name: str
    folder: Path
    known: bool
    counts: dict[str, dict[str, int]]
    edition: Edition | None
    structure: tuple[str, ...]
    differences: tuple[str, ...]
    bad: tuple[BadImage, ...] | None = None
    decoded: bool = False

    @property
    def images(self) -> int:
        """Images of all domains."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not (self.structure or self.differences or self.bad)

    def sentence(self) -> str:
        """What was found, in one sentence."""
        there = f"{self.name} in {self.folder}"
        size = (
            f"{self.images:,} images in {len(self.counts)} domains of "
            f"{len({label for labels in self.counts.values() for label in labels})} classes"
        )
        looked = {None: "; none was opened", False: "; ends checked, not decoded", True: ", all decoded"}
        how = looked[None if self.bad is None else self.decoded]
        if self.ok and self.edition is None:
            return f"{there} is usable: {size}{how}; there are no published counts to compare with."
        if self.ok:
            others = [
                f"{other.total:,} in {other.name}" for other in self._editions() if other is not self.edition
            ]
            edition = f" ({self.edition.name})" if self.edition.name else ""
            more = f"; {' and '.join(others)}" if others else ""
            return f"{there} is whole: {size}{how}, as published{edition}{more}."
        problems = list(self.structure[:1])
        if len(self.structure) > 1:
            problems.append(f"{len(self.structure) - 1} more of domains and classes")
        if self.differences:
            problems.append(f"{self.differences[0]}")
        if len(self.differences) > 1:
            problems.append(f"{len(self.differences) - 1} more domains differ")
        if self.bad:
            problems.append(f"{len(self.bad)} of {self.images:,} files cannot be read")
        return f"{there} is not whole: {'; '.join(problems)}."

    def _editions(self) -> Sequence[Edition]:
        entry = catalogue.find(self.name)
        return entry.editions if entry else ()


def inspect(
    folder: str | os.PathLike[str],
    entry: Description | None = None,
    *,
    look: bool = False,
    decode: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look at the folder of a data set.

    Args:
        folder: `<domain>/<class>/<image>`.
        entry: what it should be; nothing in particular, if None.
        look: judge every image by its ends.
        decode: decode every image.
        threads: how many images at a time.
        progress: told how far it is.

    Returns:
        What was found. Missing domains and classes are in it, rather than raised.

    Raises:
        InputError: the folder is missing or cannot be listed.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise InputError(f"dataset folder {root} {state}, expected {root}/<domain>/<class>/<image>")
    files = {
        domain: {label: class_images(root / domain / label) for label in subfolders(root / domain)}
        for domain in subfolders(root)
    }
    counts = {
        domain: {label: len(paths) for label, paths in labels.items()} for domain, labels in files.items()
    }
    structure = tuple(_structure(counts, entry))
    edition, differences = None, ()
    if entry is not None and entry.editions and set(counts) == set(entry.domains):
        edition, differences = _compare([sum(counts[domain].values()) for domain in entry.domains], entry)
    bad = None
    if look or decode:
        paths = [path for labels in files.values() for found in labels.values() for path in found]
        bad = tuple(find_bad_images(paths, decode=decode, threads=threads, progress=progress))
    return Inspection(
        name=entry.name if entry else root.resolve().name,
        folder=root,
        known=entry is not None,
        counts=counts,
        edition=edition,
        structure=structure,
        differences=differences,
        bad=bad,
        decoded=decode,
    )


def departures(dataset: DomainDataset) -> tuple[str, ...]:
    """How a data set of the paper differs from what was published, a sentence each; nothing for others."""
    entry = catalogue.find(dataset.name)
    if entry is None or not entry.paper:
        return ()
    if dataset.domain_names != entry.domains:
        return (
            f"its domains are {', '.join(dataset.domain_names)}, {', '.join(entry.domains)} are published",
        )
    return _compare([len(domain) for domain in dataset.domains], entry)[1]


def _structure(counts: dict[str, dict[str, int]], entry: Description | None) -> list[str]:
    if not counts:
        return ["there are no folders of domains"]
    domains = entry.domains if entry else tuple(counts)
    wrong = [f"the domain {domain} is missing" for domain in domains if domain not in counts]
    wrong += [f"the folder {domain} is no domain of it" for domain in counts if domain not in domains]
    expected = (
        set(entry.classes) if entry and entry.classes else {c for labels in counts.values() for c in labels}
    )
    for domain, labels in counts.items():
        if domain not in domains:
            continue
        if not labels:
            wrong.append(f"the domain {domain} has no folders of classes")
            continue
        missing, extra = sorted(expected - set(labels)), sorted(set(labels) - expected)
        wrong += [f"the domain {domain} lacks {_some(missing, 'class', 'classes')}"] if missing else []
        wrong += (
            [f"the domain {domain} has {_some(extra, 'unknown class', 'unknown classes')}"] if extra else []
        )
        empty = [label for label, count in labels.items() if not count]
        wrong += (
            [f"in the domain {domain}, {_some(empty, 'class', 'classes')} without images"] if empty else []
        )
    found = len(expected)
    if entry and not entry.classes and entry.class_count not in (None, found):
        wrong.append(f"there are {found} classes, {entry.class_count} are published")
    return wrong


def _some(names: list[str], one: str, many: str) -> str:
    shown = ", ".join(names[:3])
    if len(names) == 1:
        return f"the {one} {shown}"
    return f"{len(names)} {many} ({shown}{', ...' if len(names) > 3 else ''})"


def _compare(found: list[int], entry: Description) -> tuple[Edition, tuple[str, ...]]:
    """The nearest edition, and how the domains differ from it."""

    def distance(edition: Edition) -> int:
        return sum(abs(a - b) for a, b in zip(found, edition.images, strict=True))

    nearest = min(entry.editions, key=distance)
    differences = tuple(
        f"the domain {domain} has {count:,} images, {published:,} are published"
        for domain, count, published in zip(entry.domains, found, nearest.images, strict=True)
        if count != published
    )
    return nearest, differences
