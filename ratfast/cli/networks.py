"""The commands of `ratfast analyze` that evaluate networks on images. Imports no torch before one of them runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ratfast.cli.context import CONTEXT
from ratfast.cli.matrices import MOST_COLUMNS, header, listing, matrix, row
from ratfast.errors import InputError

if TYPE_CHECKING:
    from ratfast.analysis.averages import Growth
    from ratfast.analysis.lines import Line
    from ratfast.analysis.networks import Networks
    from ratfast.analysis.subsets import Spread

_OPENING = (
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Folder that holds the data sets.  [default for an output folder of ratfast-train: as its recipe says]",
    ),
    click.option("--dataset", help="Of files: name of the data set, or of its folder below it."),
    click.option(
        "--domain",
        "domains",
        multiple=True,
        help="A domain to evaluate on, by index or folder name; may be repeated.  [default: all, or the held-out one]",
    ),
    click.option(
        "--in-domain", "in_domains", multiple=True, help="A domain that the networks were trained on."
    ),
    click.option("--trial", type=click.IntRange(min=0), help="Of an output folder: the trial's seed."),
    click.option("--members", metavar="N,N,...", help="Of an output folder: numbers of members, from 0."),
    click.option("--backbone", help="Of files: network, for those that do not say."),
    click.option(
        "--image-size", type=click.IntRange(min=1), help="Of files: pixels, for those that do not say."
    ),
    click.option(
        "--buffers", type=click.Choice(["keep", "average", "error"]), default="error", show_default=True
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True
    ),
)


def _command(function: Callable[..., Any]) -> click.Command:
    """A command on CHECKPOINT..., with the options that say which networks and images are meant."""
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
    for option in reversed(_OPENING):
        function = option(function)
    argument = click.argument(
        "checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", type=click.Path()
    )
    return click.command(context_settings=CONTEXT)(argument(function))


def _seeded(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all random draws."
    )(function)
    return function


def _draws(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--draws",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Random subsets of each number.",
    )(_seeded(function))


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}, expected whole numbers with commas between") from None


@contextlib.contextmanager
def _opened(checkpoints: tuple[str, ...], opening: dict[str, Any]) -> Iterator[Networks]:
    """The networks, and a display of what is done with them."""
    from ratfast.analysis.networks import open_networks
    from ratfast.train.progress import Display

    opening["members"] = _numbers(opening["members"], "--members")
    with Display() as display:
        yield open_networks(checkpoints, display=display, **opening)


def _print(result: Any, lines: Iterable[str], as_json: bool) -> None:
    from ratfast.analysis.plain import plain

    if as_json:
        click.echo(json.dumps(plain(result), indent=2))
        return
    for line in lines:
        click.echo(line)


@_command
@click.option("--points", type=click.IntRange(min=2), default=11, show_default=True, help="Of the curve.")
@_seeded
def curve(checkpoints: tuple[str, ...], points: int, seed: int, as_json: bool, **opening: Any) -> None:
    """Show the accuracy along the path between two or three networks, and its barrier.

    Each CHECKPOINT is a file, a folder of files, or a pattern; or one output folder of ratfast-train. The last
    network's weight is lambda, the others share the rest. Intervals are of 1000 bootstraps over the images.
    """
    from ratfast.analysis.experiments import interpolation

    with _opened(checkpoints, opening) as networks:
        if not 2 <= len(networks.names) <= 3:
            raise InputError(
                f"{len(networks.names)} networks were given for a curve, expected two or three "
                "(--members chooses those of an output folder)"
            )
        result = interpolation(networks, points=points, seed=seed)

    def lines() -> Iterator[str]:
        yield from listing(result.networks)
        for name, found in result.curves.items():
            yield f"\n{name} ({found.images} images)"
            yield row(["lambda", "accuracy", "95%", "", "above line"])
            for values in zip(
                found.positions, found.accuracies, found.low, found.high, found.drops, strict=True
            ):
                at, accuracy, low, high, drop = values
                yield row([f"{at:.2f}", f"{accuracy:.4f}", f"{low:.4f}", f"{high:.4f}", f"{0.0 - drop:+.4f}"])
            yield f"barrier {found.barrier:.4f} [{found.barrier_low:.4f}, {found.barrier_high:.4f}]"
            yield (
                "linearly connected: nowhere below the straight line by more than chance"
                if found.connected
                else "not linearly connected: below the straight line by more than chance"
            )

    _print(result, lines(), as_json)


@_command
def diversity(checkpoints: tuple[str, ...], as_json: bool, **opening: Any) -> None:
    """Show how differently networks err, pair by pair, and how alike their features are.

    Each CHECKPOINT is as for `curve`. Ratio-error: different errors for each shared one. Q: Yule's statistic, 1 for
    errors on the same images, 0 for independent ones. CKA: centred kernel alignment of features, 1 for the same.
    """
    from ratfast.analysis.experiments import pairs

    with _opened(checkpoints, opening) as networks:
        result = pairs(networks)

    def lines() -> Iterator[str]:
        yield from listing(result.networks)
        for name, found in result.diversity.items():
            means = found.mean()
            yield f"\n{name} ({found.images} images), means over pairs"
            for measure, value in means.items():
                yield f"  {measure.replace('_', ' '):<18} {value:.4f}"
            if len(result.networks) <= MOST_COLUMNS:
                yield header(len(result.networks))
            yield from matrix("ratio-error", found.ratio_error)
            yield from matrix("Q", found.q)
            yield from matrix("linear CKA", result.linear_cka[name])
            yield from matrix("RBF CKA", result.rbf_cka[name])

    _print(result, lines(), as_json)


@_command
@click.option("--sizes", metavar="N,N,...", help="Numbers of networks.  [default: 1, 2, 3 ... all]")
@click.option("--by", type=click.Choice(["number", "sources"]), default="number", show_default=True)
@_draws
def growth(
    checkpoints: tuple[str, ...],
    sizes: str | None,
    by: str,
    draws: int,
    seed: int,
    as_json: bool,
    **opening: Any,
) -> None:
    """Show the accuracy of averages and ensembles of random subsets, by their number or that of their sources.

    Each CHECKPOINT is as for `curve`. Sources are what the members of an output folder started from; their number
    grows while that of the networks stays the same (with `--sizes` one number).
    """
    from ratfast.analysis.experiments import subsets_by_size, subsets_by_sources

    chosen = _numbers(sizes, "--sizes")
    if by == "sources" and chosen is not None and len(chosen) != 1:
        raise InputError(f"--sizes is {sizes!r}, expected one number of networks with --by sources")
    with _opened(checkpoints, opening) as networks:
        if by == "number":
            found = subsets_by_size(networks, chosen, draws=draws, seed=seed).growth()
        else:
            subsets = subsets_by_sources(networks, chosen[0] if chosen else None, draws=draws, seed=seed)
            if subsets is None:
                raise InputError(
                    "the networks do not start from two or more sources with two or more networks each, expected the "
                    "output folder of such a training"
                )
            found = subsets.growth_by_sources()
    _print(found, _growth_lines(found, by), as_json)


def _growth_lines(found: Mapping[str, Growth], by: str) -> Iterator[str]:
    for name, grown in found.items():
        yield f"{name}: accuracy and its standard error over random subsets"
        yield row([by, "average", "", "ensemble", "", "subsets"])
        for number, average, ensemble in zip(grown.numbers, grown.average, grown.ensemble, strict=True):
            cells = [str(number), *_cells(average), *_cells(ensemble), str(average.draws)]
            yield row(cells)
        yield ""


@_command
@_draws
def ensemble(checkpoints: tuple[str, ...], draws: int, seed: int, as_json: bool, **opening: Any) -> None:
    """Compare averages of weights with ensembles of predictions, and their gain with the diversity of their members.

    Each CHECKPOINT is as for `curve`. Random subsets of every number of networks are averaged. The gain is that of
    the average over the mean of its members; lines are fitted to it against their ratio-error and 1 - Q.
    """
    from ratfast.analysis.experiments import subsets_by_size

    with _opened(checkpoints, opening) as networks:
        result = subsets_by_size(networks, draws=draws, seed=seed)
    comparisons = result.comparisons()

    def lines() -> Iterator[str]:
        for name, found in comparisons.items():
            yield f"{name}: {found.subsets} subsets of two or more networks"
            for label, of in (
                ("mean of members", found.members),
                ("average", found.average),
                ("ensemble", found.ensemble),
            ):
                yield f"  {label:<34} {' '.join(_cells(of))}"
            yield f"  {'average better than ensemble':<34} {found.wins:.0%} of subsets"
            yield f"  {'gain against ratio-error':<34} {_line(found.gain_on_ratio_error)}"
            yield f"  {'gain against 1 - Q':<34} {_line(found.gain_on_q)}"
            for size, line in found.gain_by_size.items():
                if line is not None:
                    yield f"  {f'gain against ratio-error, {size} networks':<34} {_line(line)}"
            yield ""

    _print({"comparisons": comparisons, "subsets": result.results}, lines(), as_json)


@_command
@_draws
def domains(checkpoints: tuple[str, ...], draws: int, seed: int, as_json: bool, **opening: Any) -> None:
    """Compare accuracy in domain with accuracy out of domain, over networks and over averages of them.

    Each CHECKPOINT is as for `curve`. In an output folder of ratfast-train the validation images are in domain and
    the held-out domain is out of it; with files, `--in-domain` says what they were trained on.
    """
    from ratfast.analysis import experiments

    with _opened(checkpoints, opening) as networks:
        subsets = experiments.subsets_by_size(networks, draws=draws, seed=seed)
        result = experiments.domains(networks, subsets)

    def lines() -> Iterator[str]:
        yield f"in domain: {result.in_domain}; out of domain: {result.out_of_domain}"
        yield from listing(networks.names)
        yield row(["model", "in", "out"])
        for index, (inside, outside) in enumerate(result.networks):
            yield row([str(index + 1), f"{inside:.4f}", f"{outside:.4f}"])
        yield f"networks  {_line(result.line_of_networks)}"
        yield f"averages  {_line(result.line_of_averages)}"

    _print(result, lines(), as_json)


@click.command(context_settings=CONTEXT)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data sets, if it moved.")
@click.option("--points", type=click.IntRange(min=2), default=11, show_default=True, help="Of each curve.")
@_draws
@click.option("--trial", type=click.IntRange(min=0), help="The trial's seed.  [default: the first]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True
)
def run(folder: str, points: int, draws: int, seed: int, **opening: Any) -> None:
    """Make all these analyses of DIR, an output folder of ratfast-train, and keep them in DIR/analysis.json.

    `ratfast report DIR --html` shows them. Every network and every average is evaluated once.
    """
    from ratfast.analysis.whole import ANALYSIS, Settings, analyse_run
    from ratfast.train.progress import Display

    with Display() as display:
        settings = Settings(points=points, draws=draws, seed=seed)
        result = analyse_run(folder, settings, display=display, **opening)
    names = [network["name"] for network in result["networks"]]
    click.echo(f"The analyses of {len(names)} networks are in {Path(folder) / ANALYSIS}")


def _cells(spread: Spread) -> list[str]:
    error = "" if spread.standard_error is None else f"±{spread.standard_error:.4f}"
    return [f"{spread.mean:.4f}", error]


def _line(line: Line | None) -> str:
    if line is None:
        return "no line through so few points"
    r = "-" if line.r is None else f"{line.r:+.2f}"
    return f"slope {line.slope:+.4f}, r {r}, {line.points} points"
