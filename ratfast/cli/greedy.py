"""`ratfast average --method greedy`: the soup that a function of the user's likes best."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from ratfast.averaging.files import Written, average_files
from ratfast.averaging.selection import stored_scores
from ratfast.cli.selecting import parsed
from ratfast.errors import InputError

GREEDY = "greedy"
"""The method's name on the command line."""

_KNOWN = ("evaluate", "scores", "score_key")


def greedy(
    paths: Sequence[str], output: str, options: Mapping[str, Any], buffers: str, dtype: str | None
) -> Written:
    """Selects, prints what became of each candidate and why, and writes the soup with that log in its metadata.

    Args:
        paths: the candidates.
        output: the file to write.
        options: `evaluate`, as `module:function`; `scores`, one number for each candidate, or `score_key`, under which
            they are stored, to rank the candidates without evaluating each alone.
        buffers: as in `ratfast.average`.
        dtype: of the soup's file.

    Raises:
        InputError: an option is missing or unknown, or as `ratfast.greedy_soup`.
    """
    for name in options:
        if name not in _KNOWN:
            raise InputError(f"--method greedy takes no --{name.replace('_', '-')}")
    if "evaluate" not in options:
        raise InputError("--method greedy needs --evaluate MODULE:FUNCTION, which scores a state dict")
    evaluate = _function(options["evaluate"])
    scores = parsed(options).get("scores")
    if scores is None and "score_key" in options:
        scores = stored_scores(paths, options["score_key"])

    from ratfast.averaging import Pool, greedy_soup

    pool = Pool.open(paths, buffers=buffers)
    soup = greedy_soup(pool, evaluate, scores=scores)
    for trial in soup.log:
        click.echo(trial.reason)
    return average_files(
        paths,
        output,
        weights=soup.weights,
        buffers=buffers,
        dtype=dtype,
        method=GREEDY,
        selection=soup.note(),
    )


def _function(text: str) -> Callable[..., float]:
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise InputError(f"--evaluate is {text!r}, expected MODULE:FUNCTION")
    sys.path.insert(0, os.getcwd())  # as `python -m` does, which is how such a module is usually tried
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] and error.name != module:
            raise
        raise InputError(f"--evaluate names the module {module!r}, which is not to be found") from None
    function = getattr(found, name, None)
    if not callable(function):
        raise InputError(f"--evaluate names {name!r}, which the module {module!r} does not define")
    return function
