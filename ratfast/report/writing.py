"""From an output folder, or a folder of several, to a page and files of its figures."""

from __future__ import annotations

import os
from pathlib import Path

from ratfast.checkpoints import atomic_file
from ratfast.errors import InputError
from ratfast.report.charts import charts
from ratfast.report.drawing import file_png, file_svg
from ratfast.report.page import Section, build_page, section
from ratfast.report.reading import find_outputs, read_output


def read_sections(folder: str | os.PathLike[str]) -> list[Section]:
    """What the page of a folder shows.

    Raises:
        InputError: the folder holds no output of ratfast-train, or matplotlib is missing.
    """
    outputs = [read_output(path) for path in find_outputs(folder)]
    return [section(output, charts(output)) for output in outputs]


def write_page(sections: list[Section], folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Writes the page.

    Args:
        sections: from `read_sections`.
        folder: that they are of.
        path: of the HTML file.

    Raises:
        InputError: the file cannot be written there, or jinja2 is missing.
    """
    name = Path(folder).resolve().name
    title = sections[0].output.title if len(sections) == 1 else name
    _write(Path(path), build_page(sections, title).encode())


def write_plots(sections: list[Section], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes every figure as an SVG and a PNG file.

    Args:
        sections: from `read_sections`; with several, each has a folder of its own below.
        folder: made where it is missing.

    Returns:
        The files.

    Raises:
        InputError: a file cannot be written there.
    """
    root, found = Path(folder), []
    for part in sections:
        place = root if len(sections) == 1 else root / part.output.folder.name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{place} cannot be made ({error.strerror}), expected a folder for plots"
            ) from None
        for chart in part.charts:
            for suffix, data in ((".svg", file_svg(chart).encode()), (".png", file_png(chart))):
                found.append(place / (chart.name + suffix))
                _write(found[-1], data)
    return found


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)
