"""The kernel distance, which is called KID on the features of the Inception network.

Two sets of images come from the same distribution if every function of their features has the same mean in both. The
squared maximum mean discrepancy is the largest squared difference of these means over all functions of norm 1 that a
kernel k spans, which is

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / D + 1)^3.

Unlike FID it has an estimate without bias, which may therefore be below 0, and it assumes no Gaussians. Its cost grows
with the square of the number of images, so it is averaged over random subsets.

Legend: n, m rows, D features.

Source: Bińkowski et al. 2018 (arXiv 1801.01401), eq. 4.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # those of the paper's code, torch-fidelity and torchmetrics


class KernelDistance(NamedTuple):
    """The kernel distance over random subsets.

    Attributes:
        mean: Mean over the subsets.
        std: Standard deviation over the subsets.
    """

    mean: float
    std: float


def polynomial_mmd(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return the unbiased estimate of MMD^2 with the kernel (x . y / D + 1)^3, in float64. It may be below 0.

    Args:
        x: Features of the first set (n, D), n at least 2.
        y: Features of the second set (m, D), m at least 2.
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
    """Return mean and standard deviation of `polynomial_mmd` over random subsets, drawn without replacement.

    Args:
        reference: Features of the reference (n, D).
        samples: Features of the samples (m, D).
        num_subsets: Number of pairs of subsets.
        subset_size: Number of rows of each subset.
        seed: Seed of the draws.

    Raises:
        ValueError: If a set has fewer rows than a subset, or if the numbers of features differ.
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
