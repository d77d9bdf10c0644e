"""The recipe on the command line: a file, flags and overrides, the same for every command that takes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click

from ratfast import config
from ratfast.errors import InputError


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
    Flag(
        "--store",
        "output.store",
        "URL",
        "Folder (s3://, gs://, ...) where results are kept too, for any machine.",
    ),
    Flag("--device", "train.device", "NAME", "auto, cpu, cuda or cuda:N."),
    Flag(
        "--workers",
        "train.workers",
        "N",
        "Processes that train at a time; by default one for each GPU, else one.",
    ),
    Flag("--ray", "train.ray", "ADDRESS|local", "Ray cluster that trains, on any number of machines."),
)

_DATA_KEYS = ("data.dir", "data.target", "data.test_env", "data.aux")
"""Whoever gives none of these, nor a recipe, gets the demonstration."""


def read_recipe(
    path: str | None, overrides: tuple[str, ...], values: Mapping[str, str | None]
) -> config.Recipe:
    """The recipe of what `recipe_arguments` takes; without data, the demonstration, whose images are written.

    Args:
        path: a TOML file, or None.
        overrides: `section.key=value` each.
        values: the flags as click passes them.

    Raises:
        InputError: the file, a flag or an override is not usable, or a key that has no default is not given.
    """
    built, demonstration = _build(path, values, overrides)
    if not demonstration:
        return built
    from ratfast.data import demo

    plain = built.to_dict()
    plain["data"]["dir"] = str(demo.prepare())
    return config.from_dict(plain)


def _build(
    path: str | None, values: Mapping[str, str | None], overrides: tuple[str, ...]
) -> tuple[config.Recipe, bool]:
    """The recipe of a file, flags and overrides, the later ones winning.

    Returns:
        The recipe, and whether it is the demonstration, whose `data.dir` is yet to be filled in.

    Raises:
        InputError: the file, a flag or an override is not usable, or a key that has no default is not given.
    """
    given: dict[str, Any] = {}
    for flag in FLAGS:
        text = values.get(_parameter(flag))
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


def _parameter(flag: Flag) -> str:
    return flag.key.replace(".", "__")


def recipe_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the argument `recipe`, the `FLAGS`, and `overrides` (`--set`)."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set section.key; may be repeated."
    )(command)
    for flag in reversed(FLAGS):
        value = config.default(flag.key)
        shown = ",".join(value) if isinstance(value, tuple) else value
        text = flag.help if value in (None, ()) else f"{flag.help}  [default: {shown}]"
        command = click.option(flag.option, _parameter(flag), metavar=flag.metavar, help=text)(command)
    return click.argument("recipe", required=False, type=click.Path(), metavar="[RECIPE.toml]")(command)


def other_keys() -> str:
    """What the help of a command says of the keys that have no flag."""
    flagged = {flag.key for flag in FLAGS}
    return "Keys for --set without a flag of their own: " + ", ".join(
        key if config.default(key) is None else f"{key}={config.default(key)}"
        for key in config.key_names()
        if key not in flagged
    )
