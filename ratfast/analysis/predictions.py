"""What networks and averages of them predict on decoded images, each computed once.

This is where analyses meet networks: everything else in this package works on the arrays that come out here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ratfast.analysis.distances import locality
from ratfast.analysis.scores import domain_shares
from ratfast.analysis.subsets import Subset
from ratfast.averaging import Pool
from ratfast.data import DecodedImages
from ratfast.errors import InputError
from ratfast.models import Classifier
from ratfast.train.evaluation import extract_features, logits

GROUP_BYTES = 1 << 30
"""Memory for the averages that are mixed at once; each such group reads the pool once."""

FEATURE_IMAGES = 1024
"""Images of a set, evenly spaced, whose features are kept for comparisons."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one or more domains, each of which counts the same.

    Attributes:
        parts: for each domain images, (N, 3, S, S) uint8 or what hands out batches of them, and labels (N,) int64 on
            the networks' device.
    """

    parts: tuple[tuple[Tensor | DecodedImages, Tensor], ...]

    @cached_property
    def labels(self) -> np.ndarray:
        """(I,) int64 of all domains in turn."""
        return np.concatenate([labels.cpu().numpy() for _, labels in self.parts])

    @cached_property
    def shares(self) -> np.ndarray | None:
        """(I,) the images' shares of the accuracy, None where they are the same."""
        return domain_shares([len(labels) for _, labels in self.parts]) if len(self.parts) > 1 else None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Outputs:
    """What N networks make of the I images of a set.

    Attributes:
        predictions: (N, I) int64, predicted classes.
        probabilities: (N, I, C) float32.
        features: for each network (at most FEATURE_IMAGES, D) float32, of images evenly spaced over the set.
    """

    predictions: np.ndarray
    probabilities: np.ndarray
    features: list[np.ndarray]


class Predictor:
    """The networks of a pool, and averages of them, on sets of images.

    What has been predicted is kept, so that analyses may ask for the same averages without paying twice.

    Args:
        pool: N networks.
        model: of their architecture, in evaluation mode on the pool's device; its weights are written over.
        sets: images by name.
        precision: `"float32"` or `"bfloat16"`.
        progress: called with the number of networks done and their number, for each call.
        group_bytes: as GROUP_BYTES.
    """

    def __init__(
        self,
        pool: Pool,
        model: Classifier,
        sets: Mapping[str, ImageSet],
        precision: str = "float32",
        progress: Callable[[int, int], None] | None = None,
        group_bytes: int = GROUP_BYTES,
    ):
        if not sets or not all(len(images) for images in sets.values()):
            raise InputError("there are no images to evaluate on, expected at least one in each set")
        self.pool = pool
        self.sets = dict(sets)
        self._model = model.eval()
        self._precision = precision
        self._progress = progress
        self._group = max(1, group_bytes // max(pool.layout.nbytes, 1))
        self._known: dict[bytes, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.pool)

    @cached_property
    def members(self) -> dict[str, Outputs]:
        """By set, what the pool's networks themselves predict."""
        identity = np.eye(len(self))
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.sets}
        for index, weights in enumerate(identity):  # one at a time: each reads its own row only
            for name, outputs in self._evaluate(self.pool.average(weights.tolist())).items():
                found[name].append(outputs)
            self._tell(index + 1, len(self))
        results = {}
        for name, outputs in found.items():
            scores = torch.stack([scores for scores, _ in outputs])
            results[name] = Outputs(
                predictions=scores.argmax(2).cpu().numpy(),
                probabilities=scores.float().softmax(2).cpu().numpy(),
                features=[features.float().cpu().numpy() for _, features in outputs],
            )
        for index, weights in enumerate(identity):
            self._known[weights.tobytes()] = {
                name: outputs.predictions[index] for name, outputs in results.items()
            }
        return results

    def predictions(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """What weighted averages of the networks predict.

        Those not predicted yet are mixed in as few passes over the pool as memory allows.

        Args:
            weights: (K, N).

        Returns:
            By set, predicted classes (K, I) int64.

        Raises:
            InputError: the weights are not N finite numbers in each row.
        """
        weights = np.ascontiguousarray(np.atleast_2d(np.asarray(weights, float)))
        keys = [row.tobytes() for row in weights]
        _ = self.members  # weights of a single 1 are members
        wanted = {key: row for key, row in zip(keys, weights, strict=True) if key not in self._known}
        rows, done = list(wanted.items()), 0
        for start in range(0, len(rows), self._group):
            group = rows[start : start + self._group]
            for (key, _), soup in zip(group, self.pool.mix([row.tolist() for _, row in group]), strict=True):
                self._known[key] = {
                    name: scores.argmax(1).cpu().numpy()
                    for name, (scores, _) in self._evaluate(soup, features=False).items()
                }
                done += 1
                self._tell(done, len(rows))
        return {name: np.stack([self._known[key][name] for key in keys]) for name in self.sets}

    def localities(self, subsets: Sequence[Subset]) -> list[float]:
        """The locality of each subset of the networks, from inner products that are computed once."""
        return [locality(self._gram, subset) for subset in subsets]

    @cached_property
    def _gram(self) -> np.ndarray:
        return self.pool.gram().numpy()

    def _evaluate(
        self, weights: Mapping[str, Tensor], *, features: bool = True
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Logits of every set, and features of some of its images."""
        self._model.load_state_dict(weights, strict=True)
        results = {}
        for name, images in self.sets.items():
            parts = [extract_features(self._model, pixels, self._precision) for pixels, _ in images.parts]
            scores = torch.cat([logits(self._model, part, self._precision) for part in parts])
            kept = torch.cat(parts)[_evenly_spaced(len(images)).to(parts[0].device)] if features else None
            results[name] = scores, kept
        return results

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


def _evenly_spaced(count: int) -> Tensor:
    """Indices of at most FEATURE_IMAGES of `count` images."""
    return torch.linspace(0, count - 1, min(count, FEATURE_IMAGES)).round().long()
