"""How differently networks err: pairwise measures of diversity. Arrays only.

Of two networks, N11 is the share of images that both classify right, N00 that neither does, N10 and N01 those that
only the first or only the second does. The measures, as collected by Kuncheva and Whitaker, "Measures of Diversity
in Classifier Ensembles and Their Relationship with the Ensemble Accuracy" (2003):

    ratio-error   (N01 + N10) / N00                                   Aksela, 2003; used by DiWA and Ratatouille
    Q statistic   (N11 N00 - N01 N10) / (N11 N00 + N01 N10)           Yule, 1900; 1 - Q grows with diversity
    disagreement  N01 + N10                                           Skalak, 1996; Ho, 1998
    double fault  N00                                                 Giacinto and Roli, 2001

Where a quotient has no value:

- Networks that err on the same images have a ratio-error of 0 and Q = 1, whatever else is 0: no diversity.
- Where no error is shared, N00 counts as half an image (as in Haldane's and Anscombe's correction of odds ratios),
  so that the ratio-error is `2 (N01 + N10)` in images: finite, and twice what one shared error would give. The
  official code of Model Ratatouille has the same formula, but with fractions in it where images are needed, so that
  there the diversity falls almost to 0 just where it is largest.
- Where one network is right, or wrong, on every image, the other's errors have nothing to be associated with, and
  Q = 0, as of independent networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ratfast.analysis.scores import as_correct
from ratfast.errors import InputError


@dataclass(frozen=True)
class Diversity:
    """Pairwise diversity of N networks; all matrices are (N, N) and symmetric.

    Attributes:
        ratio_error: different errors for each shared error; 0 for a network with itself.
        q: Yule's Q statistic; 1 for a network with itself.
        disagreement: share of images on which exactly one of the two is right.
        double_fault: share of images on which both are wrong.
        different_labels: share of images for which the two predict different classes.
        images: number of images.
    """

    ratio_error: np.ndarray
    q: np.ndarray
    disagreement: np.ndarray
    double_fault: np.ndarray
    different_labels: np.ndarray
    images: int

    MEASURES = ("ratio_error", "q", "disagreement", "double_fault", "different_labels")

    def mean(self, members: tuple[int, ...] | None = None) -> dict[str, float]:
        """The mean of each measure over all pairs of some networks, at least two; of all by default."""
        chosen = np.arange(self.q.shape[0]) if members is None else np.asarray(members)
        if len(chosen) < 2:
            raise InputError(f"{len(chosen)} network has no diversity, expected at least two")
        rows, columns = np.triu_indices(len(chosen), 1)
        return {
            name: float(getattr(self, name)[chosen[rows], chosen[columns]].mean()) for name in self.MEASURES
        }


def diversity(predictions: np.ndarray, labels: np.ndarray, shares: np.ndarray | None = None) -> Diversity:
    """The diversity of all pairs of networks.

    Args:
        predictions: (N, I) predicted classes.
        labels: (I,) true classes.
        shares: (I,) of the images, or None.

    Raises:
        InputError: the shapes do not fit.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 2 or labels.shape != predictions.shape[1:]:
        raise InputError(
            f"the predictions have the shape {predictions.shape} and the labels {labels.shape}, "
            "expected (networks, images) and (images,)"
        )
    correct = as_correct(predictions == labels)
    images = correct.shape[1]
    weights = np.full(images, 1 / images) if shares is None else np.asarray(shares, float)
    right = correct.astype(float)
    # As sums over images of what is 0 or 1, so that what never happens is exactly 0.
    n11 = (right * weights) @ right.T
    n10 = (right * weights) @ (1 - right).T
    n01 = n10.T
    n00 = ((1 - right) * weights) @ (1 - right).T
    apart = n01 + n10
    ratio = np.divide(apart, np.where(n00 > 0, n00, 0.5 / images))
    alike, crossed = n11 * n00, n01 * n10
    total = alike + crossed
    q = np.divide(alike - crossed, total, out=np.zeros_like(total), where=total > 0)
    q[apart == 0] = 1.0
    labels_apart = np.array([((row != predictions) * weights).sum(1) for row in predictions])
    return Diversity(
        _symmetric(ratio), _symmetric(q), _symmetric(apart), _symmetric(n00), labels_apart, images
    )


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    """The upper half on both sides, since a product may round the halves differently."""
    upper = np.triu(matrix)
    return upper + np.triu(upper, 1).T
