"""Where models lie in weight space: norms, distances, angles and locality, all from their inner products. No torch.

With G the Gram matrix of N models over their parameters (buffers left out), `|a - b|^2 = G_aa + G_bb - 2 G_ab`, and
the inner products of differences to a point that is a weighted sum of models are sums of entries of G as well. So
one read of every model gives everything here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ratfast.averaging.rules import check_layouts
from ratfast.checkpoints import Checkpoint, find_checkpoints, open_checkpoint
from ratfast.checkpoints.elements import decoded
from ratfast.checkpoints.names import is_buffer_name
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError
from ratfast.layout import Layout, TensorSpec

UNRELATED = 0.95
"""The share of the distance of independent networks from which on two models count as not related."""

_CHUNK = 1 << 17  # elements of each model that are widened to float64 at a time
_RESOLUTION = 1e-14  # of squared distances relative to squared norms, in float64 sums


@dataclass(frozen=True)
class Geometry:
    """Where N models lie, relative to a reference: a base model, or else the mean of all.

    Attributes:
        names: of the models.
        reference: the base's name, or "mean".
        norms: (N,) lengths of the weight vectors.
        distances: (N, N) between the models; what float64 cannot tell from 0 (about 1e-7 of the norms) is 0.
        cosines: (N, N) of the angles between the models' differences to the reference; 0 where one is the reference.
        from_reference: (N,) distances to the reference.
        locality: the largest squared distance of a model to the mean of all, the base left out (Rame et al., "DiWA",
            arXiv 2205.09739).
        relative: (N, N) distances over the parameters of two or more dimensions, in units of the distance of
            independent networks (see `unrelated`).
    """

    names: tuple[str, ...]
    reference: str
    norms: np.ndarray
    distances: np.ndarray
    cosines: np.ndarray
    from_reference: np.ndarray
    locality: float
    relative: np.ndarray

    @property
    def unrelated(self) -> list[tuple[int, int]]:
        """Pairs of models that seem not to come from one pre-training.

        Vectors of independent networks are nearly orthogonal in so many dimensions, so that they are
        `sqrt(|a|^2 + |b|^2)` apart; fine-tunings of one network share most of their weights and are much nearer to
        each other. A pair is listed where its distance is at least 0.95 of that, which is a cosine below about 0.1,
        over the parameters of two or more dimensions: scales of normalisation layers all begin at 1, whoever
        initialises them, and say nothing.
        """
        rows, columns = np.nonzero(np.triu(self.relative >= UNRELATED, 1))
        return list(zip(rows.tolist(), columns.tolist(), strict=True))

    def warning(self) -> str | None:
        """One sentence about pairs that are not related, or None."""
        pairs = self.unrelated
        if not pairs:
            return None
        a, b = max(pairs, key=lambda pair: self.relative[pair])
        more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
        return (
            f"{self.names[a]} and {self.names[b]}{more} are as far apart as independent networks "
            f"({self.relative[a, b]:.2f} of sqrt(|a|^2 + |b|^2)), so they seem not to come from one pre-training, and "
            "their average is not expected to work"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {
            "checkpoints": list(self.names),
            "reference": self.reference,
            "norms": self.norms.tolist(),
            "distances": self.distances.tolist(),
            "cosines": self.cosines.tolist(),
            "from_reference": self.from_reference.tolist(),
            "locality": self.locality,
            "relative": self.relative.tolist(),
            "unrelated": [[self.names[a], self.names[b]] for a, b in self.unrelated],
            "warning": self.warning(),
        }


def geometry(
    gram: np.ndarray, matrices: np.ndarray, names: Sequence[str], base: int | None = None
) -> Geometry:
    """The geometry of models from their inner products.

    Args:
        gram: (N, N) float64 over all parameters.
        matrices: (N, N) float64 over the parameters of two or more dimensions; (N, N) zeros if there are none.
        names: N names.
        base: index of the base model, or None to look from the mean of all.
    """
    count = len(names)
    squares = np.diag(gram)
    members = np.array([index for index in range(count) if index != base])
    center = np.zeros(count)
    center[members] = 1 / len(members)
    reference = center if base is None else np.eye(count)[base]
    distances = _distances(gram)
    differences = _relative_gram(gram, reference)
    lengths = _roots(np.diag(differences), squares)
    if base is not None:
        lengths = distances[base]
    scale = np.outer(lengths, lengths)
    cosines = np.divide(differences, scale, out=np.zeros_like(gram), where=scale > 0)
    spread = _roots(np.diag(_relative_gram(gram, center)), squares)[members]
    apart = np.sqrt(np.add.outer(np.diag(matrices), np.diag(matrices)))
    relative = np.divide(_distances(matrices), apart, out=np.zeros_like(gram), where=apart > 0)
    return Geometry(
        names=tuple(names),
        reference="mean" if base is None else names[base],
        norms=np.sqrt(squares),
        distances=distances,
        cosines=cosines.clip(-1.0, 1.0),
        from_reference=lengths,
        locality=float(spread.max() ** 2),
        relative=relative,
    )


def locality(gram: np.ndarray, members: Sequence[int]) -> float:
    """The largest squared distance of some models to their mean, 0 for one model ("DiWA", arXiv 2205.09739).

    Args:
        gram: (N, N) inner products of models over their parameters.
        members: indices of the models.
    """
    chosen = np.asarray(gram, float)[np.ix_(members, members)]
    center = np.full(len(members), 1 / len(members))
    spread = _roots(np.diag(_relative_gram(chosen, center)), np.diag(chosen))
    return float(spread.max() ** 2)


def distances_of_files(
    paths: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None = None
) -> Geometry:
    """The geometry of checkpoint files; with a base, that file is the last of the models.

    Args:
        paths: files, folders and patterns, as `find_checkpoints` takes them.
        base: a file.

    Raises:
        InputError: there are fewer than two files, one cannot be read, they do not fit together, they have no
            parameters, or one holds numbers that are not finite.
    """
    files = [*find_checkpoints(paths), *([] if base is None else [base])]
    if len(files) < 2:
        raise InputError("one checkpoint alone has no distances, expected at least two")
    labels = [os.fspath(path) for path in files]
    by_tensor, layout = _gram(files, labels)
    for index, label in enumerate(labels):
        for entry, product in zip(layout, by_tensor, strict=True):
            if not math.isfinite(product[index, index]):
                raise InputError(
                    f"{label} has numbers in {entry.name!r} that are not finite, or too large to square"
                )
    of_matrices = np.array([len(entry.shape) >= 2 for entry in layout])
    total, matrices = by_tensor.sum(0), by_tensor[of_matrices].sum(0)
    return geometry(total, matrices, labels, None if base is None else len(files) - 1)


def _gram(paths: Sequence[str | os.PathLike[str]], labels: Sequence[str]) -> tuple[np.ndarray, Layout]:
    """Inner products (T, N, N) of files by parameter, and the layout of these T parameters in the first file."""
    files = [open_checkpoint(path) for path in paths]
    # What shares memory in every file counts once; what does so in some only is several tensors.
    tied_alike = all(file.aliases == files[0].aliases for file in files)
    layouts = [file.layout if tied_alike else _expanded(file) for file in files]
    check_layouts(layouts, labels)
    parameters = Layout(entry for entry in layouts[0] if not is_buffer_name(entry.name, entry.dtype))
    if not len(parameters):
        raise InputError(f"{labels[0]} holds no parameters, so there are no distances")
    products = np.zeros((len(parameters), len(files), len(files)))
    for t, entry in enumerate(parameters):
        pieces = [
            (file.bytes_of(entry.name), layout[entry.name].dtype)
            for file, layout in zip(files, layouts, strict=True)
        ]
        for label, (_, dtype) in zip(labels, pieces, strict=True):
            if not BY_NAME[dtype].is_floating:
                raise InputError(f"{entry.name!r} is {dtype} in {label}, expected a floating type")
        for start in range(0, entry.numel, _CHUNK):
            block = np.stack([_elements(data, dtype, start) for data, dtype in pieces])
            with np.errstate(invalid="ignore", over="ignore"):  # the caller looks for it
                products[t] += block @ block.T
    return products, parameters


def _expanded(file: Checkpoint) -> Layout:
    """The file's tensors with aliases as tensors of their own."""
    entries = {name: file.layout[file.aliases.get(name, name)] for name in file.names}
    return Layout.pack(TensorSpec(name, entry.shape, entry.dtype) for name, entry in entries.items())


def _elements(data: memoryview, dtype: str, start: int) -> np.ndarray:
    size = BY_NAME[dtype].itemsize
    return decoded(data[start * size : (start + _CHUNK) * size], dtype).astype(np.float64)


def _relative_gram(gram: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Inner products of the models' differences to the sum of models weighted by `point`, which sums to 1."""
    shift = np.eye(len(gram)) - point  # row n: the weights of model n minus the point
    return shift @ gram @ shift.T


def _distances(gram: np.ndarray) -> np.ndarray:
    squares = np.diag(gram)
    sums = np.add.outer(squares, squares)
    distances = _roots(sums - 2 * gram, sums)
    np.fill_diagonal(distances, 0.0)
    return distances


def _roots(squares: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Square roots; what rounding alone may have made of a number of size `scale` counts as 0."""
    return np.sqrt(np.where(squares > _RESOLUTION * scale, squares, 0.0))
