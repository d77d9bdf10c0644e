"""The figures of a page, from what a training and its analyses left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from ratfast.report.drawing import Chart, add_legend, colour, new_axes, plain_text, series
from ratfast.report.methods import is_number
from ratfast.report.reading import Average, Output, Run

_ACCURACY = "accuracy (%)"
_MARKERS = "Ds^vPX"  # of averages, by kind
_MOST_CELLS = 10  # networks whose numbers are written into a matrix


def charts(output: Output) -> list[Chart]:
    """All figures for which there are numbers; those that cannot be drawn are added to `output.missing`."""
    found = [*_attempt(output, "the members", _members), *_attempt(output, "the histories", _histories)]
    if output.analysis:
        for what, draw in (
            ("the curves", _curves),
            ("accuracy by number", _growth),
            ("accuracy by sources", _growth_by_sources),
            ("average and ensemble", _ensembles),
            ("gain and diversity", _gain),
            ("the domains", _domains),
            ("the pairs", _pairs),
        ):
            found += _attempt(output, what, draw)
    return found


def _attempt(output: Output, what: str, draw: Callable[[Output], Iterator[Chart]]) -> list[Chart]:
    try:
        with plain_text():
            return list(draw(output))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        output.missing.append(
            f"The figure of {what} cannot be drawn: its numbers are not as expected ({error!r})."
        )
        return []


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _by_source(sources: Sequence[str]) -> dict[str, str]:
    """A colour for each source."""
    return {source: series(index) for index, source in enumerate(dict.fromkeys(sources))}


def short(name: str) -> str:
    """A run's or file's name, short enough for a legend: its last two parts."""
    parts = [part for part in name.split("/") if part not in ("auxiliary", "target", "model.safetensors")]
    return "/".join(parts[-2:]) or name


def _members(output: Output) -> Iterator[Chart]:
    members = [m for m in output.members if is_number(m.get("val")) and is_number(m.get("test"))]
    averages = [
        a for a in output.averages if is_number(a.record.get("val")) and is_number(a.record.get("test"))
    ]
    if not members:
        return
    kinds: dict[str, list[Average]] = {}
    for average in averages:
        kinds.setdefault(average.name.partition("_trial")[0], []).append(average)
    tints = _by_source([m["initialisation"] for m in members])
    figure, axes = new_axes(
        "validation " + _ACCURACY, f"{output.test_domain} {_ACCURACY}", legend_lines=len(tints) + len(kinds)
    )
    for source, tint in tints.items():
        own = [m for m in members if m["initialisation"] == source]
        axes.scatter(
            _percent([m["val"] for m in own]),
            _percent([m["test"] for m in own]),
            color=tint,
            s=34,
            label=f"from {short(source)}",
        )
    for (kind, own_averages), marker in zip(kinds.items(), cycle(_MARKERS), strict=False):
        axes.scatter(
            _percent([average.record["val"] for average in own_averages]),
            _percent([average.record["test"] for average in own_averages]),
            marker=marker,
            s=52,
            facecolor="none",
            edgecolor=colour("ink"),
            linewidth=1.4,
            label=f"average: {kind}",
        )
    add_legend(axes)
    yield Chart(
        "members",
        "Members and averages",
        "Accuracy on the training domains' validation images against that on the domain that no run has seen; "
        "hollow marks are averages, of each trial and of all together.",
        figure,
    )


def _histories(output: Output) -> Iterator[Chart]:
    stages: dict[str, list[Run]] = {}
    for run in output.runs:
        if run.rows:
            stages.setdefault(run.stage, []).append(run)
    for stage, runs in sorted(stages.items(), key=lambda item: item[0] != "target"):
        # Fine-tunings on the target are many, and told apart by what they start from; the others by themselves.
        many = stage not in ("probe", "auxiliary")
        groups = {run.name: f"from {short(run.source)}" if many else short(run.name) for run in runs}
        colours = _by_source(list(groups.values()))
        for key, label, scale in (("val", "validation " + _ACCURACY, 100), ("loss", "training loss", 1)):
            figure, axes = new_axes("update", label)
            named: set[str] = set()
            for run in runs:
                points = [(r["step"], scale * r[key]) for r in run.rows if is_number(r.get(key))]
                if not points:
                    continue
                group = groups[run.name]
                text = None if group in named else group
                named.add(group)
                steps, values = zip(*points, strict=True)
                axes.plot(
                    steps, values, color=colours[group], linewidth=1.4, marker="o", markersize=3, label=text
                )
            if not named:
                continue
            if len(colours) <= 8:
                add_legend(axes)
            yield Chart(
                f"history-{stage}-{key}",
                f"{stage.capitalize()} runs: {'validation' if key == 'val' else 'loss'}",
                f"{len(runs)} run{'s' if len(runs) > 1 else ''}, a point for each evaluation.",
                figure,
            )


def _sets(output: Output) -> dict[str, str]:
    """The names of the sets of images, out of domain first, with their colours."""
    names = [output.analysis["out_of_domain"], output.analysis["in_domain"]]
    return {name: series(index) for index, name in enumerate(names)}


def _curves(output: Output) -> Iterator[Chart]:
    sources = {network["name"]: network["source"] for network in output.analysis["networks"]}
    for number, path in enumerate(output.analysis["curves"], 1):
        figure, axes = new_axes("λ", _ACCURACY)
        said = []
        for name, tint in _sets(output).items():
            curve = path["curves"][name]
            at, found = curve["positions"], _percent(curve["accuracies"])
            axes.fill_between(
                at, _percent(curve["low"]), _percent(curve["high"]), color=tint, alpha=0.16, linewidth=0
            )
            axes.plot(at, found, color=tint, linewidth=1.8, marker="o", markersize=3.5, label=name)
            axes.plot([0, 1], [found[0], found[-1]], color=tint, linewidth=0.9, linestyle=(0, (3, 3)))
            said.append(
                f"On {name}: barrier {100 * curve['barrier']:.1f}, gain {100 * curve['gain']:.1f} points, "
                f"{'connected' if curve['connected'] else 'not connected'}"
            )
        add_legend(axes)
        *first, last = path["networks"]
        ends = " + ".join(f"{short(name)} (from {short(sources[name])})" for name in first)
        yield Chart(
            f"curve-{number}",
            f"{' + '.join(short(name).split('/')[-1] for name in first)} → {short(last).split('/')[-1]}",
            f"From {ends} to {short(last)} (from {short(sources[last])}). {'. '.join(said)}.",
            figure,
        )


def _growth(output: Output) -> Iterator[Chart]:
    yield from _grown(
        output,
        output.analysis["by_size"]["growth"],
        "number",
        "Accuracy by number of averaged runs",
        "runs averaged",
        "the same number of runs",
    )


def _growth_by_sources(output: Output) -> Iterator[Chart]:
    if output.analysis["by_sources"]:
        yield from _grown(
            output,
            output.analysis["by_sources"]["growth"],
            "sources",
            "Accuracy by number of sources",
            "sources that the averaged runs start from",
            "as many runs from that many sources",
        )


def _grown(
    output: Output, growth: Mapping[str, Any], name: str, title: str, x: str, subsets: str
) -> Iterator[Chart]:
    outside = output.analysis["out_of_domain"]
    grown = growth[outside]
    if len(grown["numbers"]) < 2:
        return
    figure, axes = new_axes(x, f"{outside} {_ACCURACY}")
    for index, (key, label) in enumerate(
        (("average", "average of weights"), ("ensemble", "ensemble of predictions"))
    ):
        axes.errorbar(
            grown["numbers"],
            _percent([spread["mean"] for spread in grown[key]]),
            yerr=_percent([spread["standard_error"] or 0.0 for spread in grown[key]]),
            color=series(index),
            linewidth=1.8,
            linestyle="-" if key == "average" else "--",
            marker="o",
            markersize=4,
            capsize=2,
            label=label,
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    add_legend(axes)
    yield Chart(
        f"growth-{name}",
        title,
        f"Means over random subsets of {subsets}, with their standard errors.",
        figure,
    )


def _ensembles(output: Output) -> Iterator[Chart]:
    outside = output.analysis["out_of_domain"]
    several = [r for r in output.analysis["by_size"]["results"][outside] if len(r["members"]) > 1]
    if not several:
        return
    figure, axes = new_axes(f"ensemble, {_ACCURACY}", f"average, {_ACCURACY}")
    sizes = sorted({len(r["members"]) for r in several})
    for index, size in enumerate(sizes):
        own = [r for r in several if len(r["members"]) == size]
        x, y = _percent([r["ensemble"] for r in own]), _percent([r["average"] for r in own])
        axes.scatter(x, y, color=series(index), s=26, label=f"{size} runs" if len(sizes) <= 8 else None)
    both = _percent([r[key] for r in several for key in ("ensemble", "average")])
    axes.plot(
        [min(both), max(both)], [min(both), max(both)], color=colour("muted"), linewidth=0.9, linestyle="--"
    )
    add_legend(axes)
    wins = output.analysis["by_size"]["comparisons"][outside]["wins"]
    yield Chart(
        "ensembles",
        "Average of weights against ensemble of predictions",
        f"Random subsets, on {outside}. The average is better for {wins:.0%} of them, at the cost of one network in "
        "place of as many as there are members.",
        figure,
    )


def _gain(output: Output) -> Iterator[Chart]:
    outside = output.analysis["out_of_domain"]
    several = [r for r in output.analysis["by_size"]["results"][outside] if r["ratio_error"] is not None]
    if not several:
        return
    figure, axes = new_axes("ratio-error: different errors for each shared one", "gain (points)")
    x = [r["ratio_error"] for r in several]
    axes.scatter(x, _percent([r["average"] - r["members_mean"] for r in several]), color=series(0), s=26)
    axes.axhline(0, color=colour("muted"), linewidth=0.9)
    line = output.analysis["by_size"]["comparisons"][outside]["gain_on_ratio_error"]
    _draw_line(axes, line, min(x), max(x), series(1))
    yield Chart(
        "gain",
        "Gain against diversity",
        f"How far the average of a subset is above the mean of its members on {outside}, by their diversity"
        f"{_line_text(line)}.",
        figure,
    )


def _domains(output: Output) -> Iterator[Chart]:
    found = output.analysis["domains"]
    figure, axes = new_axes(f"{found['in_domain']} {_ACCURACY}", f"{found['out_of_domain']} {_ACCURACY}")
    texts = []
    for index, (key, label) in enumerate((("networks", "single runs"), ("averages", "averages"))):
        points = found[key]
        if not points:
            continue
        x, y = ([point[side] for point in points] for side in (0, 1))
        axes.scatter(_percent(x), _percent(y), color=series(index), s=26, label=label)
        line = found[f"line_of_{key}"]
        _draw_line(axes, line, min(x), max(x), series(index), 100)
        texts.append(label + _line_text(line))
    add_legend(axes)
    yield Chart(
        "domains",
        "In domain against out of domain",
        f"Accuracy on {found['in_domain']} and on {found['out_of_domain']}; {'; '.join(texts)}.",
        figure,
    )


def _draw_line(
    axes: Any, line: Mapping[str, Any] | None, low: float, high: float, tint: str, x_scale: float = 1
) -> None:
    if line is not None:
        ends = [low, high]
        values = [100 * (line["intercept"] + line["slope"] * x) for x in ends]
        axes.plot([x_scale * x for x in ends], values, color=tint, linewidth=1.2)


def _line_text(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return ""
    r = "" if line["r"] is None else f", r = {line['r']:.2f}"
    return f": slope {line['slope']:.3f}{r}"


def _pairs(output: Output) -> Iterator[Chart]:
    outside = output.analysis["out_of_domain"]
    pairs = output.analysis["pairs"]
    names = [short(name).split("/")[-1] for name in pairs["networks"]]
    mean = pairs["diversity"][outside]
    for name, title, matrix, caption in (
        (
            "ratio-error",
            "Diversity of predictions",
            mean["ratio_error"],
            "Ratio-error of each pair: different errors for each shared one.",
        ),
        (
            "cka",
            "Similarity of features",
            pairs["linear_cka"][outside],
            "Linear CKA of each pair, 1 for the same features.",
        ),
    ):
        figure, axes = new_axes("", "", size=(4.2, 3.9))
        axes.grid(False)
        count = len(names)
        values = [matrix[i][j] for i in range(count) for j in range(count) if i != j]
        low, high = min(values), max(values)
        for i in range(count):
            for j in range(count):
                strength = 0.08 + 0.72 * (matrix[i][j] - low) / ((high - low) or 1.0)
                if i != j:
                    axes.fill_between(
                        [j - 0.5, j + 0.5], i - 0.5, i + 0.5, color=series(0), alpha=strength, linewidth=0
                    )
                if count <= _MOST_CELLS:
                    text = f"{matrix[i][j]:.2f}"
                    axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour("ink"))
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        shown = count <= 20
        axes.set_xticks(
            range(count) if shown else [], names if shown else [], rotation=90 if count > 7 else 0
        )
        axes.set_yticks(range(count) if shown else [], names if shown else [])
        yield Chart(f"pairs-{name}", title, f"On {outside}. {caption}", figure)
