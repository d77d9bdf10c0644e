"""The histories of runs for TensorBoard, which reads them beside those of other tools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ratfast.errors import InputError
from ratfast.report.methods import is_number
from ratfast.report.page import Section


def write_tensorboard(sections: Sequence[Section], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the evaluations of every run as scalars, a folder for each run; what was there of it is replaced.

    Args:
        sections: from `ratfast.report.writing.read_sections`.
        folder: the log folder, for `tensorboard --logdir`.

    Returns:
        The runs' folders.

    Raises:
        InputError: the package tensorboard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            'logs for TensorBoard need the package tensorboard: pip install "ratfast[tensorboard]" installs it'
        ) from None
    found = []
    for section in sections:
        for run in section.output.runs:
            place = Path(folder, *([section.output.folder.name] if len(sections) > 1 else []), run.name)
            for old in place.glob("events.out.tfevents.*"):
                old.unlink()
            with SummaryWriter(str(place)) as writer:
                for row in run.rows:
                    for name, value in row.items():
                        if name != "step" and is_number(value):
                            writer.add_scalar(name, value, int(row["step"]))
            found.append(place)
    return found
