"""`ratfast-train`: from a recipe, flags and overrides to a training. Imports no torch before the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from ratfast import config
from ratfast.cli.context import CONTEXT
from ratfast.errors import InputError
from ratfast.version import __version__


class Flag(NamedTuple):
    """A command-line flag that sets a key of the recipe."""

    option: str
    key: str
    metavar: str
    help: str


FLAGS = (
    Flag("--data-dir", "data.dir", "DIR", "Folder that holds the data sets' folders."),
    Flag("--target", "data.target", "NAME", "Data set that the final network is for."),
    Flag("--test-env", "data.test_env", "N|NAME", "Domain of the target held out for testing."),
    Flag("--aux", "data.aux", "A,B,...", "Data sets to fine-tune on first."),
    Flag(
        "--aux-weights",
        "model.aux_weights",
        "FILE,...",
        "Auxiliary networks to use instead of training them.",
    ),
    Flag(
        "--backbone",
        "model.backbone",
        "NAME",
        f"{', '.join(config.schema.registry.backbone_names())}, torchvision/NAME or timm/NAME.",
    ),
    Flag("--weights", "model.weights", "PATH", "Pre-trained weights: a file, default (ImageNet) or none."),
    Flag("--protocol", "protocol.name", "NAME", "ratfast, or official: the release of the paper to the bit."),
    Flag("--rows", "train.rows", "A,B,...", "Rows of the paper's table to compare, or all."),
    Flag("--image-size", "data.image_size", "N", "Side of the images in pixels."),
    Flag(
        "--on-bad-image",
        "data.on_bad_image",
        "error|skip",
        "What an unreadable image does: end the command, or be left out.",
    ),
    Flag("--batch-size", "train.batch_size", "N", "Images of each training domain in a batch."),
    Flag("--runs", "train.runs", "N", "Fine-tunings on the target in each trial."),
    Flag("--trials", "train.trials", "N", "Repetitions with other splits and draws."),
    Flag("--steps", "train.steps", "N", "Optimizer steps of each fine-tuning."),
    Flag("--seed", "train.seed", "N", "Seed of the first trial."),
    Flag("--output", "output.dir", "DIR", "Folder to write to, and to continue from."),
    Flag("--device", "train.device", "NAME", "auto, cpu, cuda or cuda:N."),
)

_DATA_KEYS = ("data.dir", "data.target", "data.test_env", "data.aux")
"""Whoever gives none of these, nor a recipe, gets the demonstration."""


def build_recipe(
    path: str | None, flags: dict[str, str | None], overrides: tuple[str, ...]
) -> tuple[config.Recipe, bool]:
    """The recipe of a file, flags and overrides, the later ones winning.

    Args:
        path: a TOML file, or None.
        flags: texts by option, such as `"--steps"`; None where a flag was not given.
        overrides: `section.key=value` each.

    Returns:
        The recipe, and whether it is the demonstration, whose `data.dir` is yet to be filled in.

    Raises:
        InputError: the file, a flag or an override is not usable, or a key that has no default is not given.
    """
    given: dict[str, Any] = {}
    for flag in FLAGS:
        text = flags.get(flag.option)
        if text is not None:
            given[flag.key] = config.parse_text(flag.key, text, flag.option)
    for override in overrides:
        key, value = config.parse_override(override)
        given[key] = value
    demonstration = path is None and not any(key in given for key in _DATA_KEYS)
    if demonstration:
        base = config.values.flatten(config.demo_recipe("demo").to_dict())
    else:
        base = {} if path is None else config.read_toml(path)
    recipe = config.from_values(base | given, source="" if path is None else path)
    _require(recipe)
    return recipe, demonstration


def _require(recipe: config.Recipe) -> None:
    for flag in FLAGS[:3]:
        section, name = flag.key.split(".")
        if getattr(getattr(recipe, section), name) is None:
            raise InputError(
                f"{flag.key} is missing, expected {config.values.expected(flag.key)}: "
                f"give it in the recipe or with {flag.option} {flag.metavar}"
            )


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag in reversed(FLAGS):
        value = config.default(flag.key)
        shown = ",".join(value) if isinstance(value, tuple) else value
        text = flag.help if value in (None, ()) else f"{flag.help}  [default: {shown}]"
        command = click.option(flag.option, flag.key.replace(".", "__"), metavar=flag.metavar, help=text)(
            command
        )
    return command


def _other_keys() -> str:
    flagged = {flag.key for flag in FLAGS}
    return "Keys for --set without a flag of their own: " + ", ".join(
        key if config.default(key) is None else f"{key}={config.default(key)}"
        for key in config.key_names()
        if key not in flagged
    )


@click.command(context_settings=CONTEXT, epilog=_other_keys())
@click.argument("recipe", required=False, type=click.Path(), metavar="[RECIPE.toml]")
@_flags
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set section.key; may be repeated."
)
@click.version_option(__version__, prog_name="ratfast-train", message="%(prog)s %(version)s")
def train(recipe: str | None, overrides: tuple[str, ...], **values: str | None) -> None:
    """Train by Model Ratatouille: auxiliary fine-tunings, target fine-tunings, one average.

    Without a recipe and without data, runs a demonstration on real images of digits. The same command again
    continues where it stopped. Flags win over the recipe, --set wins over flags.
    """
    flags = {flag.option: values[flag.key.replace(".", "__")] for flag in FLAGS}
    built, demonstration = build_recipe(recipe, flags, overrides)
    if demonstration:
        from ratfast.data import demo

        plain = built.to_dict()
        plain["data"]["dir"] = str(demo.prepare())
        built = config.from_dict(plain)
    from rich.console import Console

    from ratfast.train import run
    from ratfast.train.report import closing_lines, results_table, rows_table

    summary = run(built)
    console = Console()
    console.print(results_table(summary))
    if len(summary.get("rows", ())) > len(summary["averages"]) + 1:
        console.print(rows_table(summary))
    for line in closing_lines(summary, built.data.dir):
        click.echo(line)
