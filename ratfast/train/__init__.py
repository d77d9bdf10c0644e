"""Training: from a recipe to fine-tuned members, their averages, and a summary. Imports torch on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratfast import lazy

if TYPE_CHECKING:
    from ratfast.train.execution import run

__all__ = ["run"]

__getattr__ = lazy.attributes(__name__, {"run": "execution"})


def __dir__() -> list[str]:
    return sorted(__all__)
