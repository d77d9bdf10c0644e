"""The methods of `ratfast average` that choose weights for an ordered list of files: by scores, or along a run.

Their rules are in `ratfast.averaging.selection`; here are their options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click

from ratfast.averaging.selection import SELECTIONS as RULES
from ratfast.averaging.selection import selection_weights
from ratfast.errors import InputError

_LISTS = {"scores": float, "losses": float, "steps": int}


def _weights(name: str, paths: Sequence[str], options: Mapping[str, Any]) -> list[float]:
    for option in options:
        if option not in (RULES[name].__kwdefaults__ or ()):
            raise InputError(f"--method {name} takes no --{option.replace('_', '-')}")
    return selection_weights(name, paths, parsed(options))


def parsed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those that are lists of numbers as such.

    Raises:
        InputError: one is not.
    """
    return {option: _list(option, value) if option in _LISTS else value for option, value in options.items()}


SELECTIONS: dict[str, Callable[[Sequence[str], Mapping[str, Any]], list[float]]] = {
    name: partial(_weights, name) for name in RULES
}
"""Name of the method on the command line: its function."""


def _default(name: str, option: str) -> str:
    return f"  [default: {RULES[name].__kwdefaults__[option]}]"


def selection_options() -> list[click.Option]:
    """The options that these methods add to the command; a function gets those that were given, by name."""
    return [
        click.Option(["--k", "-k"], type=int, help="top-k, lawa: how many." + _default("top-k", "k")),
        click.Option(
            ["--scores"],
            metavar="S1,S2,...",
            help="top-k, greedy: a score for each checkpoint; else top-k reads those stored, greedy evaluates each.",
        ),
        click.Option(
            ["--score-key"],
            metavar="KEY",
            help="top-k, greedy: where a stored score stands, such as run.val or metric.",
        ),
        click.Option(
            ["--evaluate"],
            metavar="MODULE:FUNCTION",
            help="greedy: what scores a state dict of tensors; larger is better.",
        ),
        click.Option(["--decay"], type=float, help="ema: weight of the past." + _default("ema", "decay")),
        click.Option(["--warmup/--no-warmup"], default=None, help="ema: smaller decays at first."),
        click.Option(
            ["--steps"],
            metavar="T1,T2,...",
            help="swa, moving-average: a step for each checkpoint; else 1,2,3...",
        ),
        click.Option(
            ["--start"],
            type=int,
            help="swa, moving-average: first step that counts." + _default("swa", "start"),
        ),
        click.Option(
            ["--every"],
            type=int,
            help="swa: steps from one that counts to the next." + _default("swa", "every"),
        ),
        click.Option(
            ["--losses"],
            metavar="L1,L2,...",
            help="swad: a validation loss for each checkpoint; else val_loss as stored in them.",
        ),
        click.Option(
            ["--n-start"], type=int, help="swad: patience for the start, N_s." + _default("swad", "n_start")
        ),
        click.Option(
            ["--n-end"], type=int, help="swad: patience for the end, N_e." + _default("swad", "n_end")
        ),
        click.Option(
            ["--tolerance"], type=float, help="swad: r, of the loss." + _default("swad", "tolerance")
        ),
    ]


def _list(option: str, text: str) -> list[Any]:
    try:
        return [_LISTS[option](part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{option} is {text!r}, expected numbers separated by commas") from None
