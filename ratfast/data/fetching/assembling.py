"""From the published files of a data set to a folder `<domain>/<class>/<image>`, as DomainBed's download makes it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ratfast.catalogue import Description
from ratfast.data import mnist
from ratfast.data.fetching.archives import Place, Unpacked, unpack
from ratfast.data.fetching.download import Watcher
from ratfast.data.folders import IMAGE_EXTENSIONS
from ratfast.errors import InputError

SEED = 0
"""Seed of the order in which MNIST's images are dealt, and of ColoredMNIST's flips."""

Assemble = Callable[[Description, Sequence[Path], Path, Watcher], Unpacked]
"""Makes the folder of a data set from its files."""


def assembler(entry: Description) -> Assemble:
    """How the folder of a data set is made."""
    special = {
        "TerraIncognita": _terra_incognita,
        "DomainNet": _domain_net,
        "RotatedMNIST": _mnist,
        "ColoredMNIST": _mnist,
    }
    return special.get(entry.name, _archives)


def _archives(entry: Description, files: Sequence[Path], folder: Path, watcher: Watcher) -> Unpacked:
    return _unpack_all(files, folder, _below_domains(entry), watcher)


def _unpack_all(files: Sequence[Path], folder: Path, place: Place, watcher: Watcher) -> Unpacked:
    done = [unpack(file, folder, place, watcher) for file in files]
    return Unpacked(sum(each.files for each in done), sum(each.links for each in done))


def _below_domains(entry: Description) -> Place:
    """Images go by the part of their path that begins with a domain's name; nothing else is unpacked."""
    domains = frozenset(entry.domains)

    def place(name: PurePosixPath) -> tuple[PurePosixPath, ...]:
        parts = name.parts
        # The Macintosh puts a shadow of every file under a folder of its own.
        if not _is_image(name) or name.name.startswith("._") or parts[0] == "__MACOSX":
            return ()
        start = next((i for i, part in enumerate(parts[:-2]) if part in domains), None)
        return () if start is None else (PurePosixPath(*parts[start:]),)

    return place


def _is_image(name: PurePosixPath) -> bool:
    return name.name.lower().endswith(IMAGE_EXTENSIONS)


def _domain_net(entry: Description, files: Sequence[Path], folder: Path, watcher: Watcher) -> Unpacked:
    listed, *archives = files
    duplicates = {
        PurePosixPath(line.strip())
        for line in listed.read_text(encoding="utf-8").splitlines()
        if line.strip()
    }
    below = _below_domains(entry)

    def place(name: PurePosixPath) -> Sequence[PurePosixPath]:
        return [target for target in below(name) if target not in duplicates]

    return _unpack_all(archives, folder, place, watcher)


def _terra_incognita(entry: Description, files: Sequence[Path], folder: Path, watcher: Watcher) -> Unpacked:
    annotations, *images = files
    notes = folder.with_name(folder.name + "-annotations")
    shutil.rmtree(notes, ignore_errors=True)

    def place_notes(name: PurePosixPath) -> tuple[PurePosixPath, ...]:
        return (PurePosixPath(name.name),) if name.suffix == ".json" and name.name[0] != "." else ()

    unpack(annotations, notes, place_notes, watcher)
    targets = _places_of_camera_traps(entry, sorted(notes.glob("*.json")))
    shutil.rmtree(notes)
    return _unpack_all(images, folder, lambda name: targets.get(name.name, ()), watcher)


def _places_of_camera_traps(entry: Description, files: Sequence[Path]) -> dict[str, list[PurePosixPath]]:
    """Where each image goes: to its location, and there to every class that an annotation gives it.

    Raises:
        InputError: a file is not as the Caltech Camera Traps' annotations are.
    """
    classes: dict[Any, str] = {}
    labels = defaultdict(set)
    images = []
    for file in files:
        try:
            content = json.loads(file.read_bytes())
            classes |= {item["id"]: item["name"] for item in content["categories"]}
            images += [
                (item["id"], item["file_name"], f"location_{item['location']}") for item in content["images"]
            ]
            for item in content["annotations"]:
                labels[item["image_id"]].add(item["category_id"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{file.name} is not as the annotations of the Caltech Camera Traps are ({error!r})"
            ) from error
    wanted_domains, wanted_classes = frozenset(entry.domains), frozenset(entry.classes)
    places: dict[str, list[PurePosixPath]] = {}
    for key, file_name, domain in images:
        if domain not in wanted_domains:
            continue
        for label in sorted(classes.get(number, "") for number in labels[key]):
            target = PurePosixPath(domain, label, file_name)
            if label in wanted_classes and target not in places.setdefault(file_name, []):
                places[file_name].append(target)
    return places


def _mnist(entry: Description, files: Sequence[Path], folder: Path, watcher: Watcher) -> Unpacked:
    arrays = [mnist.read_idx(file) for file in files]
    if [array.ndim for array in arrays] != [3, 1, 3, 1]:
        raise InputError(
            f"the files of {entry.name} are not images, labels, images and labels of MNIST, in this order"
        )
    images, digits = np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])
    if len(images) != len(digits):
        raise InputError(f"MNIST has {len(images)} images and {len(digits)} labels, expected as many")
    random = np.random.default_rng(SEED)
    order = random.permutation(len(images))
    images, digits = images[order], digits[order]
    colored = entry.name == "ColoredMNIST"
    made = mnist.make_colored(images, digits, random) if colored else mnist.make_rotated(images, digits)
    for number, (domain, label, image) in enumerate(made):
        path = folder / domain / str(label) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, compress_level=1)
        if number % 500 == 0:
            watcher.progress(f"writing the images of {entry.name}", number * images[0].nbytes, images.nbytes)
    watcher.progress(f"writing the images of {entry.name}", images.nbytes, images.nbytes)
    return Unpacked(len(images), 0)
