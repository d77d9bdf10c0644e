"""What a method asks for: how each tensor of the result is computed from the tensors of the models. No torch.

A method looks at a pool (`Rows`) and returns a `Combination`; `Pool.combine` and `FilePool` carry it out, in memory or
from file to file, with the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ratfast.layout import Layout

if TYPE_CHECKING:
    import numpy as np

Weights = tuple[tuple[float, ...], ...]
"""(K, N): a row for each output, a number for each model."""


class Rows(Protocol):
    """N models of one architecture, as methods see them.

    Attributes:
        layout: the tensors.
        names: what each model is called.
        parameters: names of the tensors that methods work on: of floating types and no buffers.
    """

    layout: Layout
    names: tuple[str, ...]
    parameters: tuple[str, ...]

    def __len__(self) -> int: ...

    def grams(self) -> np.ndarray:
        """(T, N, N) float64: the inner products of all pairs of models, for each of the T parameters."""
        ...

    def kth_magnitudes(
        self, model: int, base: int | None, counts: Sequence[int], *, together: bool
    ) -> np.ndarray:
        """The k-th largest `|float32(model - base)|`, exactly.

        Args:
            model: index of a model.
            base: index of the model that is subtracted, or None.
            counts: k for each parameter, or one number for all of them `together`.
            together: count over all parameters as one vector.

        Returns:
            (T,) or (1,) float32; k = 0 gives infinity, and k no less than the number of elements 0.
        """
        ...


@dataclass(frozen=True)
class Mix:
    """Weighted sums: output k is `sum over n of weights[k][n] * x_n`."""

    weights: Weights


@dataclass(frozen=True)
class Column:
    """A reduction, element by element, over some of the models: the kinds and formulas of `ratfast.ops.combine_`.

    Attributes:
        kind: min, max, geometric, fisher, sum or elect.
        models: indices of the N models; for "fisher" those of their N Fisher diagonals follow.
        weights: N numbers.
        base: index of the model whose difference the kinds sum and elect work on.
        thresholds: N magnitudes below which a difference is dropped, or None.
        densities: N probabilities with which a difference is kept at random, and rescaled; or None.
        streams: N numbers of random streams, with densities.
        key: of the tensor's random numbers.
        seed: of all random numbers.
        scale: of the sum that is added to the base.
        normalize: of "elect": divide by the sum of the weights that agree.
    """

    kind: str
    models: tuple[int, ...]
    weights: tuple[float, ...]
    base: int | None = None
    thresholds: tuple[float, ...] | None = None
    densities: tuple[float, ...] | None = None
    streams: tuple[int, ...] | None = None
    key: int = 0
    seed: int = 0
    scale: float = 1.0
    normalize: bool = True


Step = Mix | Column


@dataclass(frozen=True)
class Combination:
    """How to make K outputs from N models.

    Attributes:
        steps: for every parameter; a `Column` makes one output.
        weights: (K, N), for buffers where they are averaged.
        points: for each output its place on a path, where there are several.
    """

    steps: Mapping[str, Step]
    weights: Weights
    points: tuple[float, ...] = field(default=())

    @property
    def outputs(self) -> int:
        """K."""
        return len(self.weights)

    @classmethod
    def mix(cls, rows: Rows, weights: Iterable[Iterable[float]], points: Iterable[float] = ()) -> Combination:
        """The same weights for every tensor."""
        matrix = tuple(tuple(float(w) for w in row) for row in weights)
        return cls(dict.fromkeys(rows.parameters, Mix(matrix)), matrix, tuple(points))

    def output(self, k: int) -> Combination:
        """Output `k` alone."""
        steps = {
            name: Mix((step.weights[k],)) if isinstance(step, Mix) else step
            for name, step in self.steps.items()
        }
        return Combination(steps, (self.weights[k],), self.points[k : k + 1])

    def step(self, name: str) -> Step:
        """What happens to a tensor of floating type."""
        return self.steps.get(name) or Mix(self.weights)

    def models(self, step: Step) -> list[int]:
        """The models that a step reads, the base last: of a `Mix` those that have a weight other than 0."""
        if isinstance(step, Mix):
            return [n for n in range(len(step.weights[0])) if any(row[n] != 0.0 for row in step.weights)] or [
                0
            ]
        return [*step.models, *([] if step.base is None else [step.base])]


def grouped(items: Iterable[Any], combination: Combination) -> list[tuple[Step, list[Any]]]:
    """Items whose first field is a tensor's name, in groups that one call of a kernel computes.

    Steps of one group differ in nothing but `thresholds` and `key`.
    """
    groups: dict[Hashable, tuple[Step, list[Any]]] = {}
    known: dict[int, Hashable] = {}
    for item in items:
        step = combination.step(item[0])
        identity = known.get(id(step))
        if identity is None:
            shared = isinstance(step, Column)
            identity = (
                (dataclasses.replace(step, thresholds=None, key=0), step.thresholds is None)
                if shared
                else step
            )
            if item[0] in combination.steps:  # others are made on the way, and their id is used again
                known[id(step)] = identity
        groups.setdefault(identity, (step, []))[1].append(item)
    return list(groups.values())
