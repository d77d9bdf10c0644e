"""The study's figure: what recycling gains, by held-out domain and in the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ratfast.report.drawing import Chart, add_legend, colour, new_axes, plain_text, series

_OFFSET = 0.11  # between the domains of one comparison, of a line's height


def gains(record: Mapping[str, Any]) -> Chart:
    """A line for each comparison of a record of `collecting.collect`: its domains, and their mean.

    Args:
        record: with `gains`, at least one.
    """
    found: Sequence[Mapping[str, Any]] = record["gains"]
    domains = list(found[0]["domains"])
    with plain_text():
        figure, axes = new_axes(
            "gain on the held-out domain (points)", "", size=(6.6, 0.75 + 0.62 * len(found))
        )
        axes.axvline(0, color=colour("muted"), linewidth=1)
        for index, domain in enumerate(domains):
            cells = [gain["domains"][domain] for gain in found]
            offset = _OFFSET * (index - (len(domains) - 1) / 2)
            _points(axes, cells, offset, label=domain, color=series(index), marker="o", markersize=4)
        means = [gain["mean"] for gain in found]
        _points(axes, means, 0.36, label="mean", color=colour("ink"), marker="D", markersize=6)
        axes.set_yticks(range(len(found)), [_broken(gain["what"]) for gain in found])
        axes.set_ylim(len(found) - 0.4, -0.5)
        axes.grid(visible=False, axis="y")
        add_legend(axes)
    caption = "Test accuracy of one average less that of the other; bars are standard errors over the trials."
    return Chart("gains", "What recycling gains", caption, figure)


def _points(axes: Any, cells: Sequence[Mapping[str, Any]], offset: float, **style: Any) -> None:
    """A marker with its standard error on every line that has a number."""
    places = [(line + offset, cell) for line, cell in enumerate(cells) if cell["mean"] is not None]
    axes.errorbar(
        [100 * cell["mean"] for _, cell in places],
        [place for place, _ in places],
        xerr=[100 * (cell["error"] or 0.0) for _, cell in places],
        linestyle="none",
        linewidth=1.4,
        **style,
    )


def _broken(text: str) -> str:
    """A long label in two lines."""
    first, comma, rest = text.partition(", ")
    return f"{first},\n{rest}" if comma and len(text) > 22 else text
