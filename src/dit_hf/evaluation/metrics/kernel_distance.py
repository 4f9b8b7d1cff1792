"""The kernel distance, called KID on Inception's features: an unbiased estimate of a squared maximum mean discrepancy.

Legend: n, m rows, D features, b rows of a subset.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # those of the paper's code, torch-fidelity and torchmetrics


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets."""

    mean: float
    std: float


def polynomial_mmd(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """The unbiased MMD^2 of two sets of rows with the kernel (x . y / D + 1)^3, in float64; it may be below 0.

    Args:
        x: (n, D), n at least 2.
        y: (m, D), m at least 2.

    Source: Bińkowski et al. 2018 (arXiv 1801.01401), eq. 4.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    k_xx, k_yy, k_xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1)) + (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within - 2 * k_xy.mean())


def kernel_distance(
    reference: NDArray[np.floating],
    samples: NDArray[np.floating],
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KernelDistance:
    """`polynomial_mmd` of random subsets, drawn without replacement.

    Args:
        reference: (n, D).
        samples: (m, D).
        num_subsets: how many pairs of subsets.
        subset_size: rows of each, b.
        seed: of the draws.

    Raises:
        ValueError: if a set has fewer rows than a subset, or the numbers of features differ.
    """
    if reference.shape[1] != samples.shape[1]:
        raise ValueError(f"{reference.shape[1]} and {samples.shape[1]} features cannot be compared")
    fewest = min(len(reference), len(samples))
    if not 2 <= subset_size <= fewest:
        raise ValueError(f"subset_size={subset_size} is outside 2..{fewest}, the size of the smaller set")
    rng = np.random.default_rng(seed)
    distances = [
        polynomial_mmd(
            reference[rng.choice(len(reference), subset_size, replace=False)],
            samples[rng.choice(len(samples), subset_size, replace=False)],
        )
        for _ in range(num_subsets)
    ]
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))
