"""Precision and recall, density and coverage: how two sets of features cover each other with balls of their neighbours.

Legend: N reference images, M samples, D features, k the neighbour whose distance is a ball's radius.
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
    """Shares between 0 and 1."""

    precision: float  # of the samples, those within a ball of the reference
    recall: float  # of the reference, those within a ball of the samples


class DensityCoverage(NamedTuple):
    """Density may be above 1, coverage is a share."""

    density: float  # in how many balls of the reference a sample lies, divided by k
    coverage: float  # share of the reference's balls that hold a sample


def precision_recall(
    reference: NDArray[np.floating],
    samples: NDArray[np.floating],
    *,
    k: int = K_PRECISION_RECALL,
    mode: Mode = "exact",
) -> PrecisionRecall:
    """Share of the samples in the manifold of the reference, and share of the reference in that of the samples.

    Args:
        reference: (N, D).
        samples: (M, D).
        k: the neighbour, 1..min(N, M) - 1, that a ball reaches to.
        mode: "exact" answers as float64 does; "adm_float16" repeats ADM's half-precision arithmetic, which the numbers
            in papers come from.

    Raises:
        ValueError: for an unknown mode, or sets that do not fit each other or k.

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
    """How densely samples lie in the balls of the reference, and how many of these balls hold one; exact.

    Args:
        reference: (N, D).
        samples: (M, D).
        k: the neighbour, 1..N - 1, that a ball reaches to.

    Raises:
        ValueError: for sets that do not fit each other or k.

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
