"""Precision and recall in the half-precision arithmetic of ADM's script, with which the numbers in papers were made.

Squared distances are |u|^2 - 2 u . v + |v|^2 with each step rounded to float16. A block of 10,000 x 10,000 distances in
which one overflows is computed in float32 instead. The sums of a dot product and of a norm are made in float32 and then
rounded, as on a GPU.

Source: openai/guided-diffusion, evaluations/evaluator.py, `ManifoldEstimator` and `DistanceBlock`.
Legend: N reference images, M samples, D features.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 10_000  # ADM's row_batch_size and col_batch_size: one overflow turns a whole block into float32
ROWS = 1000  # rows that are computed together: 40 MB


def _rounded_distances(u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the squared distances (rows of u, rows of v) as float32, each step rounded to the type."""
    u, v = u.to(dtype), v.to(dtype)
    norm_u, norm_v = (torch.square(x).float().sum(1).to(dtype) for x in (u, v))
    distances = (u.float() @ v.float().T).to(dtype)
    distances = norm_u[:, None] - 2 * distances + norm_v
    return distances.clamp_(min=0).float()


def _block_distances(u: Tensor, v: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the distances of a block, ROWS rows at a time: in float16, or in float32 if one of the block overflows."""
    parts = [slice(start, min(start + ROWS, len(u))) for start in range(0, len(u), ROWS)]
    half = [_rounded_distances(u[part], v, torch.float16).half() for part in parts]  # 200 MB; no bit is lost
    overflows = not all(torch.isfinite(part).all() for part in half)
    for number, part in enumerate(parts):
        yield part, _rounded_distances(u[part], v, torch.float32) if overflows else half[number].float()


def _starts(features: Tensor) -> Iterator[tuple[int, Tensor]]:
    yield from ((start, features[start : start + BLOCK]) for start in range(0, len(features), BLOCK))


def _radii(features: Tensor, k: int) -> Tensor:
    """Return the (k + 1)-th smallest distance of each row to all rows, the row itself included (N,)."""
    nearest = torch.full((len(features), k + 1), torch.inf)
    for top, u in _starts(features):
        for _, v in _starts(features):
            for part, distances in _block_distances(u, v):
                rows = slice(top + part.start, top + part.stop)
                values = distances.topk(min(k + 1, len(v)), dim=1, largest=False).values
                nearest[rows] = torch.cat([nearest[rows], values], 1).topk(k + 1, dim=1, largest=False).values
    return nearest[:, k]


def precision_recall(reference: NDArray[np.floating], samples: NDArray[np.floating], k: int = 3) -> tuple[float, float]:
    """Return precision and recall as ADM's script computes them.

    Args:
        reference: Features of the reference (N, D).
        samples: Features of the samples (M, D).
        k: Number of the neighbour that a ball reaches to, 1..min(N, M) - 1.

    Raises:
        ValueError: If the sets do not fit each other, or if a set has no more than k rows.
    """
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        shapes = f"{reference.shape} and {samples.shape}"
        raise ValueError(f"features of shapes {shapes} cannot be compared: pass (N, D), (M, D)")
    fewest = min(len(reference), len(samples))
    if not 1 <= k < fewest:
        raise ValueError(f"k={k} is outside 1..{fewest - 1}: a ball needs k other points, a set has {fewest}")
    first, second = (torch.from_numpy(np.asarray(rows, np.float32)) for rows in (reference, samples))
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ValueError("features are not finite: look at the extractor")
    radii_first, radii_second = _radii(first, k), _radii(second, k)
    recalled = torch.zeros(len(first), dtype=torch.bool)
    precise = torch.zeros(len(second), dtype=torch.bool)
    for top, u in _starts(first):
        for left, v in _starts(second):
            columns = slice(left, left + len(v))
            for part, distances in _block_distances(u, v):
                rows = slice(top + part.start, top + part.stop)
                recalled[rows] |= (distances <= radii_second[columns]).any(1)
                precise[columns] |= (distances <= radii_first[rows, None]).any(0)
    return precise.double().mean().item(), recalled.double().mean().item()
