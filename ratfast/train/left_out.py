"""The images that a recipe leaves out because they cannot be read (`data.on_bad_image = "skip"`).

They are settled before anything is split or trained, by decoding every image once, and recorded in the output
folder: a command that continues there leaves out the same ones, and decodes again only what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ratfast import data
from ratfast.errors import InputError
from ratfast.train import records
from ratfast.train.progress import View

LEFT_OUT = "left_out.json"
"""Name of the record in the output folder."""

LeftOut = Mapping[str, Mapping[str, Any]]
"""By data set: `images` (paths below its folder, each with its defect), and `files`, the state of all its files."""


def find_left_out(datasets: Mapping[str, data.DomainDataset], output: Path, display: View) -> LeftOut:
    """Finds the images that cannot be read, from the output folder's record where the files are still the same.

    Args:
        datasets: the data sets by name.
        output: the output folder; need not exist.
        display: shows how far the decoding is.

    Raises:
        InputError: runs in the output folder left out other images.
    """
    # Without a recipe, the folder's runs failed before the first of them was done.
    recorded = read_left_out(output) if (output / records.RECIPE).is_file() else {}
    found = {}
    for name, dataset in datasets.items():
        paths = [path for domain in dataset.domains for path in domain.paths]
        files = _state(paths, dataset.root)
        known = recorded.get(name)
        if known is not None and known["files"] == files:
            found[name] = known
            continue
        progress = partial(display.count, f"decoding every image of {name}")
        bad = data.find_bad_images(paths, decode=True, progress=progress)
        images = {os.path.relpath(image.path, dataset.root): image.defect for image in bad}
        if known is not None and known["images"].keys() != images.keys():
            example = min(known["images"].keys() ^ images.keys())
            raise InputError(
                f"runs in the output folder {output} left out other images of {name} than cannot be read now "
                f"(differing in {example}), expected the same images or another --output"
            )
        found[name] = {"images": images, "files": files}
    for name, record in found.items():
        if record["images"]:
            path, defect = next(iter(record["images"].items()))
            display.say(
                f"left out {len(record['images'])} images of {name}, the first {path}, which {defect}"
            )
    return found


def without(dataset: data.DomainDataset, record: Mapping[str, Any]) -> data.DomainDataset:
    """The data set with the images of its record marked as left out."""
    return dataset.leave_out(os.path.join(dataset.root, path) for path in record["images"])


def read_left_out(output: Path) -> LeftOut:
    """The output folder's record; empty where there is none."""
    try:
        return json.loads((output / LEFT_OUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def write_left_out(output: Path, found: LeftOut) -> None:
    """Writes the record into the output folder."""
    records.write_json(output / LEFT_OUT, found)


def summary_of(output: Path, found: LeftOut) -> dict[str, Any]:
    """What `summary.json` says about them: how many, and the file that lists them."""
    count = sum(len(record["images"]) for record in found.values())
    return {"images": count, "file": str(output / LEFT_OUT)}


def _state(paths: list[str], root: Path) -> str:
    """A hash of names, sizes and times of files: changes where one of them does."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "unreachable"
        digest.update(f"{os.path.relpath(path, root)}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
