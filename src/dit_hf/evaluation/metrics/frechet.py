"""The Fréchet distance, which is called FID on the features of the Inception network of 2015.

Take the features of real images and of samples as two clouds of points, and describe each by a Gaussian with its mean m
and covariance S. The distance between the Gaussians is

    d^2 = |m_1 - m_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)).

It is 0 if means and covariances agree, and it grows both if samples look wrong and if they lack variety. With n images
the estimate is too large by about a constant / n, so distances compare only at equal numbers of images.

Legend: D features; n, m rows.

Source: Heusel et al. 2017 (arXiv 1706.08500), eq. 6.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray


def frechet_distance(
    mean_1: NDArray[np.floating],
    covariance_1: NDArray[np.floating],
    mean_2: NDArray[np.floating],
    covariance_2: NDArray[np.floating],
) -> float:
    """Return the squared Wasserstein-2 distance of N(mean_1, covariance_1) and N(mean_2, covariance_2).

    The trace of (S_1 S_2)^(1/2) is computed as the nuclear norm of S_1^(1/2) S_2^(1/2). That is exact for singular
    covariances too, and needs no complex square root.

    Args:
        mean_1: Mean of the first set (D,).
        covariance_1: Covariance of the first set (D, D), symmetric.
        mean_2: Mean of the second set (D,).
        covariance_2: Covariance of the second set (D, D), symmetric.

    Raises:
        ValueError: If the shapes do not fit each other, or if a value is not finite.
    """
    arrays = [np.asarray(array, np.float64) for array in (mean_1, covariance_1, mean_2, covariance_2)]
    size = len(arrays[0])
    if [array.shape for array in arrays] != [(size,), (size, size)] * 2:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"means and covariances of shapes {shapes}: pass (D,), (D, D), (D,), (D, D)")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("means or covariances are not finite: look at the features")
    m_1, s_1, m_2, s_2 = arrays
    # |m_1 - m_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), Heusel et al. 2017, eq. 6
    trace_root = np.linalg.svd(_root(s_1) @ _root(s_2), compute_uv=False).sum()
    distance = ((m_1 - m_2) ** 2).sum() + np.trace(s_1) + np.trace(s_2) - 2 * trace_root
    return float(max(distance, 0.0))  # below 0 by rounding only


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric square root of a positive semi-definite matrix (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet_distance_of_rows(features_1: NDArray[np.floating], features_2: NDArray[np.floating]) -> float:
    """Return the Fréchet distance of two sets of rows without forming a covariance, which is quick for few rows.

    Let X and Y be the centred rows. X^T / (n - 1)^(1/2) is a square root of S_1 up to a rotation, so the trace of
    (S_1 S_2)^(1/2) is the nuclear norm of X Y^T / ((n - 1)(m - 1))^(1/2).

    Args:
        features_1: Features of the first set (n, D), n at least 2.
        features_2: Features of the second set (m, D), m at least 2.

    Raises:
        ValueError: If the numbers of features differ, or if a set has fewer than two rows.
    """
    if features_1.shape[1:] != features_2.shape[1:] or min(len(features_1), len(features_2)) < 2:
        shapes = f"{features_1.shape} and {features_2.shape}"
        raise ValueError(f"rows of shapes {shapes} cannot be compared: pass (n, D) and (m, D), n and m at least 2")
    means = [features.mean(0, dtype=np.float64) for features in (features_1, features_2)]
    roots = [
        (features - mean) / np.sqrt(len(features) - 1)
        for features, mean in zip((features_1, features_2), means, strict=True)
    ]
    trace_root = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    distance = ((means[0] - means[1]) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * trace_root
    return float(max(distance, 0.0))  # below 0 by rounding only


def class_frechet_distances(
    features_1: NDArray[np.floating],
    labels_1: NDArray[np.integer],
    features_2: NDArray[np.floating],
    labels_2: NDArray[np.integer],
) -> dict[int, float]:
    """Return the Fréchet distance within each class; their mean is the class-conditional FID (intra-FID).

    Args:
        features_1: Features of the first set (n, D).
        labels_1: Class of each row of the first set (n,).
        features_2: Features of the second set (m, D).
        labels_2: Class of each row of the second set (m,).

    Raises:
        ValueError: If the two sets do not have the same classes, or if a class has fewer than two images.

    Source: Miyato & Koyama 2018 (arXiv 1802.05637), section 6.
    """
    counts_1, counts_2 = (Counter(labels.tolist()) for labels in (labels_1, labels_2))
    if counts_1.keys() != counts_2.keys():
        first = min(counts_1.keys() ^ counts_2.keys())
        raise ValueError(f"class {first} is in one of the two sets only: both need the same classes")
    if single := sorted(label for label in counts_1 if min(counts_1[label], counts_2[label]) < 2):
        raise ValueError(f"class {single[0]} has a single image in one of the two sets: each class needs at least 2")
    return {
        label: frechet_distance_of_rows(features_1[labels_1 == label], features_2[labels_2 == label])
        for label in sorted(counts_1)
    }
