"""Figures that are narrow enough for a phone, and as SVG follow the page's colours, light or dark.

matplotlib draws them in the light colours of `PALETTE`; inside a page each of these is replaced by a variable of the
page's style sheet, so that one drawing serves both.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ratfast.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE: Mapping[str, tuple[str, str]] = {
    "ink": ("#1c1c21", "#ececf1"),
    "muted": ("#62626d", "#a5a5b2"),
    "line": ("#d8d8e0", "#3b3b46"),
    "paper": ("#fefefe", "#17171c"),
    "series0": ("#0b62c4", "#6db3ff"),
    "series1": ("#bf4608", "#ff9d5c"),
    "series2": ("#147a3d", "#5fd38d"),
    "series3": ("#8428c9", "#cf9bff"),
    "series4": ("#a3195b", "#ff86b8"),
    "series5": ("#0d7280", "#54d0de"),
    "series6": ("#7c5e00", "#e3c04b"),
    "series7": ("#4b4f5c", "#b9bdca"),
}
"""By name of the page's variable: the light colour and the dark one."""

_SIZE = (4.2, 3.1)  # inches: 302 points wide, about a phone's page, so that text keeps its size there


_LEGEND_LINE = 0.21  # inches
_USUAL_LINES = 3


@dataclass(frozen=True)
class Chart:
    """A figure with what it says.

    Attributes:
        name: of its files.
        title: above it.
        caption: below it: what is drawn, and from where the idea is.
        figure: itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def colour(name: str) -> str:
    """A light colour of the palette."""
    return PALETTE[name][0]


def series(index: int) -> str:
    """The colour of a series; after eight they begin again."""
    return colour(f"series{index % 8}")


def new_axes(
    x: str, y: str, *, size: tuple[float, float] = _SIZE, legend_lines: int = 0
) -> tuple[Figure, Axes]:
    """A figure with one empty plot in the page's style.

    Args:
        x: what stands below the horizontal axis.
        y: what stands beside the vertical one.
        size: in inches.
        legend_lines: of the legend above; the figure grows by those beyond the usual few, and the plot keeps its size.
    """
    from matplotlib.figure import Figure

    width, height = size
    height += _LEGEND_LINE * max(0, legend_lines - _USUAL_LINES)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(color=colour("line"), linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colour("muted"))
    axes.tick_params(colors=colour("muted"), labelcolor=colour("ink"), labelsize=10)
    axes.set_xlabel(x, color=colour("ink"), fontsize=11)
    axes.set_ylabel(y, color=colour("ink"), fontsize=11)
    return figure, axes


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Text drawn inside is taken as it is: a name with dollars in it is no formula.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            'a page or plots need the package matplotlib: pip install "ratfast[report]" installs it'
        ) from None
    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def add_legend(axes: Axes) -> None:
    """The legend above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.01),
            ncols=1 if max(map(len, labels)) > 12 else 2,
            fontsize=10,
            frameon=False,
            labelcolor=colour("ink"),
            handlelength=1.6,
            borderaxespad=0,
        )


def inline_svg(chart: Chart) -> str:
    """The chart as SVG for a page: no size of its own, colours by variables, read out by its title."""
    text = _svg(chart)
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None  # matplotlib always writes one
    label = html.escape(f"{chart.title}. {chart.caption}", quote=True)
    head = f'<svg {box[0]} role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink"'
    for name, (light, _) in PALETTE.items():
        body = body.replace(light, f"var(--{name})")
    return f"{head}>{body}"


def file_svg(chart: Chart) -> str:
    """The chart as an SVG file in the light colours, on its own paper."""
    return _svg(chart, facecolor=colour("paper"))


def file_png(chart: Chart) -> bytes:
    """The chart as a PNG file in the light colours, 1000 pixels wide."""
    data = io.BytesIO()
    with plain_text():
        chart.figure.savefig(
            data, format="png", dpi=240, facecolor=colour("paper"), metadata={"Software": "ratfast"}
        )
    return data.getvalue()


def _svg(chart: Chart, **options: str) -> str:
    import matplotlib

    data = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text; the same salt gives the same names of elements every time, another chart's other ones.
    with plain_text(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name}):
        chart.figure.savefig(data, format="svg", metadata=nothing, **options)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", data.getvalue(), flags=re.DOTALL)
    # matplotlib numbers its groups anew in every drawing, and one page holds many.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(r"[ \t]+\n", "\n", text)
