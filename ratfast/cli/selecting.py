"""The methods of `ratfast average` that choose weights for an ordered list of files: greedy, top-k, along a run.

Each is a function `(paths, options) -> weights`, which imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

SELECTIONS: dict[str, Callable[[Sequence[str], Mapping[str, Any]], list[float]]] = {}
"""Name of the method on the command line: its function."""


def selection_options() -> list[click.Option]:
    """The options that these methods add to the command; a function gets those that were given, by name."""
    return []
