"""The Fréchet distance between two Gaussians: FID and sFID when its features are Inception's.

Legend: D features.
"""

import numpy as np
from numpy.typing import NDArray


def frechet_distance(
    mean_1: NDArray[np.floating],
    covariance_1: NDArray[np.floating],
    mean_2: NDArray[np.floating],
    covariance_2: NDArray[np.floating],
) -> float:
    """The squared Wasserstein-2 distance of N(mean_1, covariance_1) and N(mean_2, covariance_2).

    The trace of (S1 S2)^(1/2) is the nuclear norm of S1^(1/2) S2^(1/2), which stays exact where a covariance is
    singular and needs no complex square root.

    Args:
        mean_1: (D,).
        covariance_1: (D, D), symmetric.
        mean_2: (D,).
        covariance_2: (D, D), symmetric.

    Raises:
        ValueError: if the shapes do not fit each other, or a value is not finite.

    Source: Heusel et al. 2017 (arXiv 1706.08500), eq. 6.
    """
    arrays = [np.asarray(array, np.float64) for array in (mean_1, covariance_1, mean_2, covariance_2)]
    size = len(arrays[0])
    if [array.shape for array in arrays] != [(size,), (size, size)] * 2:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"means and covariances of shapes {shapes}: pass (D,), (D, D), (D,), (D, D)")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("means or covariances are not finite: look at the features")
    mu_1, sigma_1, mu_2, sigma_2 = arrays
    # |mu_1 - mu_2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017, eq. 6
    trace_root = np.linalg.svd(_root(sigma_1) @ _root(sigma_2), compute_uv=False).sum()
    distance = ((mu_1 - mu_2) ** 2).sum() + np.trace(sigma_1) + np.trace(sigma_2) - 2 * trace_root
    return float(max(distance, 0.0))  # below 0 by rounding only


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semi-definite matrix (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet_distance_of_rows(features_1: NDArray[np.floating], features_2: NDArray[np.floating]) -> float:
    """The Fréchet distance of two sets of rows, quick where they have few rows: no covariance is formed.

    With X and Y the centred rows, the trace of (S1 S2)^(1/2) is the nuclear norm of X Y^T / ((n - 1)(m - 1))^(1/2), as
    X^T / (n - 1)^(1/2) is a square root of S1 up to a rotation.

    Args:
        features_1: (n, D), n at least 2.
        features_2: (m, D), m at least 2.

    Raises:
        ValueError: if the numbers of features differ, or a set has fewer than two rows.
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
    """The Fréchet distance within each class; their mean is the class-conditional FID (intra-FID).

    Args:
        features_1: (n, D).
        labels_1: (n,).
        features_2: (m, D).
        labels_2: (m,).

    Raises:
        ValueError: if the two do not have the same classes, at least two images of each.

    Source: Miyato & Koyama 2018 (arXiv 1802.05637), section 6.
    """
    classes = [set(np.unique(labels).tolist()) for labels in (labels_1, labels_2)]
    if classes[0] != classes[1]:
        first = min(classes[0] ^ classes[1])
        raise ValueError(f"class {first} is in one of the two sets only: both need the same classes")
    return {
        label: frechet_distance_of_rows(features_1[labels_1 == label], features_2[labels_2 == label])
        for label in sorted(classes[0])
    }
