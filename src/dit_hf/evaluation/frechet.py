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
