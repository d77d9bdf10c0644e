"""How alike networks represent the same images: centred kernel alignment of their features. Arrays only.

Kornblith et al., "Similarity of Neural Network Representations Revisited" (arXiv 1905.00414): with K and L the
kernel matrices of two networks over the same images, both centred, `CKA = <K, L> / (|K| |L|)` with the inner product
and norm of Frobenius. It does not change where features are rotated or scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ratfast.errors import InputError


def linear_cka(features: Sequence[np.ndarray]) -> np.ndarray:
    """CKA with the kernel `x . y`.

    Args:
        features: N arrays (I, D), of the same I images; the widths D may differ.

    Returns:
        (N, N) float64, 1 on the diagonal; 0 where a network has the same features for every image, which are like
        no others.

    Raises:
        InputError: the numbers of images differ, are below 2, or features are not finite.
    """
    return _alignment([_centred(_gram(x)) for x in _checked(features)])


def rbf_cka(features: Sequence[np.ndarray], bandwidth: float = 0.8) -> np.ndarray:
    """CKA with the kernel `exp(-|x - y|^2 / (2 sigma^2))`, sigma a fraction of the median distance of the images.

    Args:
        features: as in `linear_cka`.
        bandwidth: that fraction; the default did best in the paper (table 2).

    Returns:
        As `linear_cka`.

    Raises:
        InputError: as in `linear_cka`.
    """
    return _alignment([_centred(_rbf(_gram(x), bandwidth)) for x in _checked(features)])


def _checked(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    arrays = [np.asarray(x, float) for x in features]
    shapes = [x.shape for x in arrays]
    if not arrays or any(len(shape) != 2 or shape[0] != shapes[0][0] or shape[0] < 2 for shape in shapes):
        raise InputError(
            f"the features have the shapes {shapes}, expected (images, width) each with the same images, at least 2"
        )
    if not all(np.isfinite(x).all() for x in arrays):
        raise InputError("there are features that are not finite, expected finite numbers")
    return arrays


def _gram(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)  # distances and centred products stay the same, and lose fewer digits
    if np.abs(centred).max(initial=0) <= 1e-12 * np.abs(x).max(initial=0):
        return np.zeros((len(x), len(x)))  # the same features for all images, but for rounding
    return centred @ centred.T


def _rbf(gram: np.ndarray, bandwidth: float) -> np.ndarray:
    squares = np.diag(gram)
    distances = np.maximum(np.add.outer(squares, squares) - 2 * gram, 0.0)
    median = np.median(distances[np.triu_indices(len(gram), 1)])
    if median == 0:
        median = distances.max() or 1.0  # most images have the same features
    return np.exp(-distances / (2 * bandwidth**2 * median))


def _centred(gram: np.ndarray) -> np.ndarray:
    rows = gram.mean(0)
    return gram - rows - rows[:, None] + rows.mean()


def _alignment(grams: Sequence[np.ndarray]) -> np.ndarray:
    flat = [gram.ravel() for gram in grams]
    products = np.array([[a @ b for b in flat] for a in flat])
    norms = np.sqrt(np.diag(products))
    scale = np.outer(norms, norms)
    result = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(result, 1.0)
    return np.clip(result, 0.0, 1.0)
