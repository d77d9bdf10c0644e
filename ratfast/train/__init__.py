"""Training: from a recipe to fine-tuned members, their averages, and a summary."""

from ratfast.train.run import run

__all__ = ["run"]
