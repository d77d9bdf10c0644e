"""Which model classifies the most images right, without evaluating the others to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Contest:
    """Scores models one after the other on the same batches, and leaves off where one can no longer equal the best.

    What is decided by comparing the scores with the best is as if all had been evaluated in full: a model is left only
    when, with every image to come right, it would still have fewer right than the best, and its score is then less.
    Batches that the best model does worst on come first, as that is where others go wrong too; each batch is always
    evaluated as a whole, so that its numbers are those of a full evaluation.

    Args:
        sizes: images in each batch.

    Attributes:
        evaluated: images evaluated so far.
        spared: images that were not, of models that were left.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.evaluated = self.spared = 0
        self._sizes = list(sizes)
        self._order = list(range(len(sizes)))
        self._best: int | None = None

    def score(self, correct: Callable[[int], int]) -> float:
        """The share of images that a model classifies right, or, of one that cannot equal the best, less than that.

        Args:
            correct: how many images of the batch of this number it classifies right.
        """
        total = remaining = sum(self._sizes)
        found: dict[int, int] = {}
        for number in self._order:
            found[number] = correct(number)
            remaining -= self._sizes[number]
            self.evaluated += self._sizes[number]
            most = sum(found.values()) + remaining
            if self._best is not None and most < self._best:
                self.spared += remaining
                # From whole numbers, so that models that are equally good compare equal.
                return most / total
        self._best = most
        self._order.sort(key=lambda number: found[number] / self._sizes[number])
        return most / total
