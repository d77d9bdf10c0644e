"""Datasets of several domains as folders: `ROOT/<domain>/<class>/<image>`, in DomainBed's order to the bit.

DomainBed sorts the domains by name; within a domain the order is that of
`torchvision.datasets.ImageFolder`. Splits are shuffles of that order, so it decides which image is held out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ratfast.errors import InputError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File name endings that count as images (any case), as in torchvision; every other file is passed over."""


@dataclass(frozen=True, eq=False)
class Domain:
    """The images of one domain, in DomainBed's order.

    Attributes:
        name: name of the folder.
        paths: file of each image.
        labels: class index of each image, int64 of shape (len(paths),).
        left_out: positions of images that are not to be used, sorted, int64; see `DomainDataset.leave_out`.
    """

    name: str
    paths: tuple[str, ...]
    labels: np.ndarray
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def usable(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Those of `indices` (of all positions, if None), int64, in their order, that are not left out."""
        indices = np.arange(len(self)) if indices is None else indices
        return indices[~np.isin(indices, self.left_out)]


@dataclass(frozen=True, eq=False)
class DomainDataset:
    """A dataset of several domains that share their classes.

    Attributes:
        name: name of the dataset.
        root: its folder.
        classes: names of the classes, sorted; a label is an index into them.
        domains: the domains, sorted by name; a domain's index is DomainBed's environment number.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    domains: tuple[Domain, ...]

    def __len__(self) -> int:
        return sum(len(domain) for domain in self.domains)

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    def domain_index(self, domain: int | str) -> int:
        """Index of a domain given by number, or by name.

        Raises:
            InputError: there is no such domain.
        """
        if isinstance(domain, str):
            if domain in self.domain_names:
                return self.domain_names.index(domain)
            if domain.isdecimal() and int(domain) < len(self.domains):
                return int(domain)
        elif 0 <= domain < len(self.domains):
            return int(domain)
        known = ", ".join(f"{i} {name}" for i, name in enumerate(self.domain_names))
        raise InputError(f"dataset {self.name} has no domain {domain!r}; its domains are {known}")

    def leave_out(self, paths: Iterable[str]) -> DomainDataset:
        """The same images at the same positions, some of them marked as not to be used.

        Positions count every file, so that a split is a shuffle of all files, and an unusable one goes from the
        half that it falls in: the other images stay in the halves in which they are without it.

        Args:
            paths: files of the images to leave out; those of other data sets do not matter.
        """
        chosen = frozenset(paths)
        domains = (
            replace(
                domain,
                left_out=np.array([i for i, path in enumerate(domain.paths) if path in chosen], np.int64),
            )
            for domain in self.domains
        )
        return replace(self, domains=tuple(domains))

    def require_several_domains(self) -> None:
        """Check that one domain can be held out and at least one is left to train on.

        Raises:
            InputError: the dataset has one domain only.
        """
        if len(self.domains) < 2:
            raise InputError(
                f"dataset {self.name} in {self.root} has only the domain {self.domains[0].name!r}; "
                "holding one out takes at least two"
            )


def scan(root: str | os.PathLike[str], name: str | None = None) -> DomainDataset:
    """List the images of a dataset in DomainBed's order.

    Args:
        root: folder with one folder per domain, each with one folder per class. Images may lie deeper;
            links to folders are followed.
        name: name of the dataset; that of the folder if None.

    Returns:
        The dataset. No image is opened.

    Raises:
        InputError: the folder is missing or holds no folders, a domain holds no class folders, the classes
            differ between domains, a class has no images in some domain, a folder cannot be listed, or a link to
            a folder leads nowhere or back to a folder that it lies in.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise InputError(
            f"dataset folder {root} {state}; expected a folder of the form {root}/<domain>/<class>/<image>"
        )
    domain_names = subfolders(root)
    if not domain_names:
        raise InputError(f"dataset folder {root} holds no domains; expected {root}/<domain>/<class>/<image>")
    classes: list[str] = []
    domains = []
    for domain_name in domain_names:
        found = subfolders(root / domain_name)
        if not found:
            raise InputError(
                f"domain folder {root / domain_name} holds no class folders; "
                f"expected {root}/<domain>/<class>/<image>"
            )
        if not domains:
            classes = found
        elif found != classes:
            raise InputError(_difference(root, domain_names[0], classes, domain_name, found))
        domains.append(_scan_domain(root, domain_name, classes))
    return DomainDataset(name or root.resolve().name, root, tuple(classes), tuple(domains))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; links to folders count.

    Raises:
        InputError: it cannot be listed, or a link in it leads nowhere.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                # Passed over, it would take a domain or a class with it; editors leave links with a dot.
                if entry.is_symlink() and not os.path.exists(entry.path) and entry.name[0] != ".":
                    raise InputError(
                        f"{entry.path} is a link to {os.readlink(entry.path)}, which cannot be reached; "
                        "expected a folder or no link"
                    )
            return [entry.name for entry in found if entry.is_dir()]
    except OSError as error:
        raise _unlisted(error) from error


def _unlisted(error: OSError) -> InputError:
    return InputError(f"cannot list folder {os.fsdecode(error.filename)}: {(error.strerror or '').lower()}")


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder at or below `top` with its file names, unsorted; links to folders are followed.

    Raises:
        InputError: a folder cannot be listed, or lies within itself.
    """

    def fail(error: OSError) -> None:
        raise _unlisted(error) from error

    true_top = Path(top).resolve()
    # The true paths of each folder and of those that it lies in.
    above = {os.fspath(top): tuple(map(str, (true_top, *true_top.parents)))}
    for folder, subfolders, files in os.walk(top, followlinks=True, onerror=fail):
        chain = above.pop(folder)
        for name in subfolders:
            path = os.path.join(folder, name)
            true = os.path.realpath(path)
            if true in chain:
                raise InputError(
                    f"{path} leads back to {true}, in which it lies; expected folders without loops"
                )
            above[path] = (*chain, true)
        yield folder, files


def _difference(root: Path, first: str, classes: list[str], domain: str, found: list[str]) -> str:
    def listed(names: set[str]) -> str:
        shown = sorted(names)[:5]
        return ", ".join(repr(n) for n in shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    missing, extra = set(classes) - set(found), set(found) - set(classes)
    parts = []
    if missing:
        parts.append(f"{domain!r} lacks {listed(missing)}")
    if extra:
        parts.append(f"{first!r} lacks {listed(extra)}")
    return f"the domains of {root} must have the same class folders, but {' and '.join(parts)}"


def class_images(folder: Path) -> list[str]:
    """The images at or below the folder of a class, in the order of `torchvision.datasets.ImageFolder`.

    Raises:
        InputError: a folder cannot be listed, or lies within itself.
    """
    return [
        os.path.join(below, file)
        for below, files in sorted(_walk(folder))  # by folder path
        for file in sorted(files)
        if file.lower().endswith(IMAGE_EXTENSIONS)
    ]


def _scan_domain(root: Path, domain: str, classes: list[str]) -> Domain:
    paths: list[str] = []
    counts = []
    for label in classes:
        found = class_images(root / domain / label)
        if not found:
            raise InputError(
                f"class folder {root / domain / label} holds no images; expected files ending in "
                + ", ".join(IMAGE_EXTENSIONS)
            )
        paths += found
        counts.append(len(found))
    return Domain(domain, tuple(paths), np.repeat(np.arange(len(classes), dtype=np.int64), counts))
