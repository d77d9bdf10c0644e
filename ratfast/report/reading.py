"""What a training left in its output folder, as far as it is there: pieces that are missing are said to be missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ratfast import config
from ratfast.analysis.whole import ANALYSIS, compare_networks
from ratfast.checkpoints import read_metadata, sha256
from ratfast.errors import InputError
from ratfast.train import records

AVERAGES = "averages"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: its folder below the output folder.
        record: the content of `run.json`.
        rows: of `results.jsonl`, one for each evaluation.
    """

    name: str
    record: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @property
    def stage(self) -> str:
        """The kind of training: probe, auxiliary, target ..."""
        return str(self.record.get("stage", self.name.split("/")[0]))

    @property
    def source(self) -> str:
        """What it started from."""
        return str(self.record.get("initialisation", "not recorded"))


@dataclass(frozen=True)
class Average:
    """One averaged network.

    Attributes:
        name: its file without the ending.
        record: what `summary.json` says of it: `val`, `test`, `members`.
        note: the metadata of its file: `method`, `weights`, `inputs` (file, sha256), `version`.
        sha256: of its file; empty if that is missing.
    """

    name: str
    record: Mapping[str, Any]
    note: Mapping[str, Any]
    sha256: str

    @property
    def inputs(self) -> list[tuple[str, float | None, str]]:
        """For each network: file, weight (None if not recorded) and SHA-256 (empty if not recorded)."""
        files = self.note.get("inputs") or []
        weights = self.note.get("weights") or [None] * len(files)
        return [
            (
                str(entry.get("file", entry.get("model", "?"))),
                weight if isinstance(weight, (int, float)) else None,
                str(entry.get("sha256", "")),
            )
            for entry, weight in zip(files, weights, strict=False)
            if isinstance(entry, dict)
        ]


@dataclass(frozen=True)
class Output:
    """One output folder.

    Attributes:
        folder: where it is.
        summary: of `summary.json`, empty if it is missing.
        recipe: the text of `recipe.toml`, empty if it is missing.
        data_dir: of the recipe.
        runs: all of them, in the order of their names.
        averages: all of them.
        analysis: of `analysis.json`, empty if it is missing.
        missing: what is not there, a sentence each.
    """

    folder: Path
    summary: Mapping[str, Any]
    recipe: str
    data_dir: str | None
    runs: list[Run]
    averages: list[Average]
    analysis: Mapping[str, Any]
    missing: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What was trained and tested on."""
        if not self.summary:
            return self.folder.name
        return f"{self.summary.get('target', '?')}, tested on {self.summary.get('test_domain', '?')}"

    @property
    def members(self) -> list[Mapping[str, Any]]:
        """The members that the summary lists."""
        return _mappings(self.summary.get("members"))

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """The lines of the paper's table that the summary lists."""
        return _mappings(self.summary.get("rows"))

    @property
    def test_domain(self) -> str:
        """Name of the held-out domain."""
        return str(self.summary.get("test_domain", "?"))


def find_outputs(folder: str | os.PathLike[str]) -> list[Path]:
    """The output folder itself, or those below it, by name.

    Raises:
        InputError: there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, expected the output of ratfast-train")
    marks = (records.SUMMARY, records.RECIPE)
    if any((root / mark).is_file() for mark in marks):
        return [root]
    found = sorted({path.parent for mark in marks for path in root.glob(f"**/{mark}")})
    if not found:
        raise InputError(
            f"{root} holds no {records.SUMMARY} or {records.RECIPE}, expected the output of ratfast-train, or a "
            "folder of several"
        )
    return found


def read_output(folder: Path) -> Output:
    """Reads an output folder; what is missing or damaged is listed in the result."""
    missing: list[str] = []

    def attempt(path: Path, read: Callable[[Path], _T], otherwise: _T, without: str) -> _T:
        try:
            return read(path)
        except FileNotFoundError:
            missing.append(f"{_below(path, folder)} is not there: {without}.")
        except (OSError, ValueError) as error:  # InputError is a ValueError
            missing.append(f"{_below(path, folder)} cannot be read ({error}): {without}.")
        return otherwise

    summary = attempt(folder / records.SUMMARY, _object, {}, "the training has not finished, so no table")
    recipe = attempt(folder / records.RECIPE, _text, "", "the settings are not known")
    data_dir = attempt(folder / records.RECIPE, _data_dir, None, "the folder of the data is not known")
    analysis = attempt(
        folder / ANALYSIS,
        _object,
        {},
        f"no curves; `ratfast analyze run {folder}` makes them",
    )
    changed, gone = compare_networks(folder, analysis)
    if changed:
        analysis = {}
        missing.append(
            f"{ANALYSIS} is of other networks than these ({changed[0]} has changed since): no curves; "
            f"`ratfast analyze run {folder}` makes them."
        )
    elif gone:
        missing.append(
            f"{len(gone)} of the networks of {ANALYSIS} are not there ({gone[0]}): whether it is of this training "
            "cannot be checked."
        )
    runs = []
    for path in sorted(folder.glob(f"**/{records.RUN}")):
        name = _below(path.parent, folder)
        if path.parent.name.endswith(".partial"):
            continue
        record = attempt(path, _object, {}, "its settings are not shown")
        rows = attempt(path.with_name(records.RESULTS), _rows, [], "its history is not shown")
        runs.append(Run(name, record, rows))
    if not runs:
        missing.append(f"There is no {records.RUN} of any run, so no histories.")
    recorded = _objects(summary.get("averages"))
    averages = []
    for name in dict.fromkeys(
        [*recorded, *(p.stem for p in sorted((folder / AVERAGES).glob("*.safetensors")))]
    ):
        path = folder / AVERAGES / f"{name}.safetensors"
        note = attempt(path, _note, {}, "what was averaged with which weights is not shown")
        digest = sha256(path) if path.is_file() else ""
        averages.append(Average(name, recorded.get(name, {}), note, digest))
    if not averages:
        missing.append(f"There is no average in {AVERAGES}/.")
    return Output(folder, summary, recipe, data_dir, runs, averages, analysis, list(dict.fromkeys(missing)))


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(_text(path))
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
    if not all(isinstance(row, dict) and isinstance(row.get("step"), (int, float)) for row in rows):
        raise ValueError("a line is not an evaluation with its step")
    return rows


def _note(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(path)
    return read_metadata(path)


def _data_dir(path: Path) -> str | None:
    return config.load(path).data.dir if path.is_file() else None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Those entries of a list that are mappings."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    """Those entries of a mapping that are mappings."""
    entries = value.items() if isinstance(value, dict) else ()
    return {str(name): entry for name, entry in entries if isinstance(entry, dict)}
