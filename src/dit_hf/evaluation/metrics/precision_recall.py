"""Precision and recall, density and coverage: whether samples look real, and whether they cover the real images.

Around each real image lies a ball that reaches to its k-th nearest other real image; the balls together are an estimate
of the manifold of real images. Precision is the share of the samples that lie in it. Recall is the same with the roles
exchanged: the share of the real images that lie in the manifold of the samples. Sharp samples of few kinds have a high
precision and a low recall.

One real image far from all others has a huge ball, which catches bad samples too. Density therefore counts in how many
balls a sample lies, and coverage is the share of the real balls that hold a sample:

    precision = 1/M sum_j [x_j lies in some ball]        density  = 1/(k M) sum_j sum_i [x_j lies in ball i]
    recall    = 1/N sum_i [r_i lies in some ball of x]   coverage = 1/N sum_i [ball i holds some x_j]

Legend: N real images r_i (the reference), M samples x_j, D features, k the neighbour that a ball reaches to.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import adm_float16
from .neighbours import inside_pairs, pair_up, squared_radii

Mode = Literal["exact", "adm_float16"]
K_PRECISION_RECALL = 3  # ADM's, and that of the paper of precision and recall
K_DENSITY_COVERAGE = 5  # that of the paper of density and coverage


class PrecisionRecall(NamedTuple):
    """Precision and recall.

    Attributes:
        precision: Share of the samples that lie in a ball of the reference, 0..1.
        recall: Share of the reference that lies in a ball of the samples, 0..1.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage.

    Attributes:
        density: Mean number of balls of the reference that a sample lies in, divided by k. It may be above 1.
        coverage: Share of the balls of the reference that hold a sample, 0..1.
    """

    density: float
    coverage: float


def precision_recall(
    reference: NDArray[np.floating],
    samples: NDArray[np.floating],
    *,
    k: int = K_PRECISION_RECALL,
    mode: Mode = "exact",
) -> PrecisionRecall:
    """Return the share of the samples in the manifold of the reference, and the reverse.

    Args:
        reference: Features of the reference (N, D).
        samples: Features of the samples (M, D).
        k: Number of the neighbour that a ball reaches to, 1..min(N, M) - 1.
        mode: `exact` decides as float64 does; `adm_float16` repeats the half-precision arithmetic of ADM's script, with
            which the numbers in papers were made.

    Raises:
        ValueError: If the mode is unknown, or if the sets do not fit each other or k.

    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1-2.
    """
    if mode not in ("exact", "adm_float16"):
        raise ValueError(f"mode={mode!r}: choose exact or adm_float16")
    if mode == "adm_float16":
        return PrecisionRecall(*adm_float16.precision_recall(reference, samples, k))
    first, second = pair_up(reference, samples)
    radii_first, radii_second = squared_radii(first, k), squared_radii(second, k)
    recalled = torch.zeros(len(first), dtype=torch.bool)
    precise = torch.zeros(len(second), dtype=torch.bool)
    for (_, in_reference), (in_samples, _) in inside_pairs(first, second, radii_first, radii_second):
        precise[in_reference] = True
        recalled[in_samples] = True
    return PrecisionRecall(precise.double().mean().item(), recalled.double().mean().item())


def density_coverage(
    reference: NDArray[np.floating], samples: NDArray[np.floating], *, k: int = K_DENSITY_COVERAGE
) -> DensityCoverage:
    """Return how densely the samples lie in the balls of the reference, and the share of these balls that hold one.

    Args:
        reference: Features of the reference (N, D).
        samples: Features of the samples (M, D).
        k: Number of the neighbour that a ball reaches to, 1..N - 1.

    Raises:
        ValueError: If the sets do not fit each other or k.

    Source: Naeem et al. 2020 (arXiv 2002.09797), eq. 3-4.
    """
    first, second = pair_up(reference, samples)
    radii = squared_radii(first, k)
    covered = torch.zeros(len(first), dtype=torch.bool)
    num_pairs = 0
    for (balls, _), _ in inside_pairs(first, second, radii):
        covered[balls] = True
        num_pairs += len(balls)
    return DensityCoverage(num_pairs / (k * len(second)), covered.double().mean().item())
