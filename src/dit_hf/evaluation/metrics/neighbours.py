"""Which points lie in whose balls, exactly as float64 says, at the speed of a float32 matrix product.

Distances come from a float32 product, whose error has a bound. Only where the bound leaves a question open is the
distance computed again from the difference of the two points in float64; so the answers are those of brute force.

Legend: N, M points of D features; i, j their numbers.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS, COLUMNS = 1024, 4096  # of a block of distances: 16 MB
PAIRS = 2048  # distances computed again together
SPARE = 8  # neighbours kept beyond k, so that hardly a row needs all its distances again


class Points:
    """Rows with what a float32 distance needs: centred copies, and their norms.

    Args:
        rows: (N, D), finite.
        centre: (D,), near the middle of what is compared: distances do not depend on it, but rounding does.

    Raises:
        ValueError: if the rows are not finite, or too large for float32.
    """

    def __init__(self, rows: NDArray[np.floating], centre: NDArray[np.float64]) -> None:
        self.exact = torch.from_numpy(np.ascontiguousarray(rows))  # (N, D)
        self.centred = torch.empty(rows.shape, dtype=torch.float32)  # (N, D)
        shift = torch.from_numpy(centre)
        for start in range(0, len(rows), ROWS):
            self.centred[start : start + ROWS] = self.exact[start : start + ROWS].double() - shift
        self.squared_norms = torch.linalg.vecdot(self.centred, self.centred)  # (N,)
        if not torch.isfinite(self.squared_norms).all():
            raise ValueError("features are not finite, or too large for float32: look at the extractor")
        self.norms = self.squared_norms.sqrt()  # (N,)

    def __len__(self) -> int:
        return len(self.exact)


def pair_up(first: NDArray[np.floating], second: NDArray[np.floating]) -> tuple[Points, Points]:
    """Two sets of rows with a common centre.

    Raises:
        ValueError: if they have not the same number of features.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features of shapes {first.shape} and {second.shape} cannot be compared: pass (N, D), (M, D)")
    centre = first.mean(0, dtype=np.float64)
    return Points(first, centre), Points(second, centre)


def _blocks(num_rows: int, num_columns: int, triangle: bool = False) -> Iterator[tuple[slice, slice]]:
    """Blocks of a matrix; with `triangle`, only those that reach the diagonal or lie above it."""
    for top in range(0, num_rows, ROWS):
        first = top // COLUMNS * COLUMNS if triangle else 0
        for left in range(first, num_columns, COLUMNS):
            yield slice(top, min(top + ROWS, num_rows)), slice(left, min(left + COLUMNS, num_columns))


def _screen(first: Points, rows: slice, second: Points, columns: slice) -> tuple[Tensor, float]:
    """Squared distances of a block in float32, and a bound of their error.

    With u the unit roundoff, a product of D terms is off by at most D u |x||y|, the norms and the centring by a few
    u (|x| + |y|)^2 (Higham 2002, section 3.1), and 2 |x||y| <= (|x| + |y|)^2 / 2.
    """
    block = torch.addmm(
        second.squared_norms[columns], first.centred[rows], second.centred[columns].T, alpha=-2
    )  # |y|^2 - 2 x . y
    block += first.squared_norms[rows, None]
    reach = float(first.norms[rows].max() + second.norms[columns].max())
    return block, 2.0**-24 * (first.exact.shape[1] / 2 + 8) * reach**2


def _exact(first: Points, i: Tensor, second: Points, j: Tensor) -> Tensor:
    """Squared distances of the pairs (i, j) from differences in float64."""
    found = [
        torch.linalg.vecdot(difference, difference)
        for part_i, part_j in zip(i.split(PAIRS), j.split(PAIRS), strict=True)
        for difference in [first.exact[part_i].double() - second.exact[part_j].double()]
    ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def squared_radii(points: Points, k: int) -> Tensor:
    """The squared distance of each point to its k-th nearest among the others (N,), in float64.

    Raises:
        ValueError: if there are not more than k points.
    """
    num = len(points)
    if not 1 <= k < num:
        raise ValueError(f"k={k} is outside 1..{num - 1}: a ball needs k other points, there are {num} in the set")
    keep = min(k + SPARE, num - 1)
    nearest = torch.full((num, keep), torch.inf)
    index = torch.full((num, keep), -1)
    tolerance = torch.zeros(num)

    def offer(rows: slice, distances: Tensor, columns: slice, error: float) -> None:
        """Keep the nearest of what is held and of the block's columns."""
        values, places = distances.topk(min(keep, distances.shape[1]), dim=1, largest=False, sorted=False)
        values = torch.cat([nearest[rows], values], 1)
        nearest[rows], order = values.topk(keep, dim=1, largest=False)
        index[rows] = torch.cat([index[rows], places + columns.start], 1).gather(1, order)
        tolerance[rows] = tolerance[rows].clamp(min=error)

    for rows, columns in _blocks(num, num, triangle=True):
        distances, error = _screen(points, rows, points, columns)
        if rows.start >= columns.start:  # the block holds a part of the diagonal: no point is its own neighbour
            distances.diagonal(rows.start - columns.start).fill_(torch.inf)
        else:  # the mirrored block is not computed
            offer(columns, distances.T.contiguous(), rows, error)
        offer(rows, distances, columns, error)
    return _settle(points, k, nearest, index, tolerance)


def _settle(points: Points, k: int, nearest: Tensor, index: Tensor, tolerance: Tensor) -> Tensor:
    """The k-th squared distance in float64, of each row's nearest (N, K) that are off by at most the tolerance (N,)."""
    values, margin = nearest.double(), 2 * tolerance.double()[:, None]
    kth = values[:, k - 1 : k].clone()
    is_open = (values >= kth - margin) & (values <= kth + margin)
    row, place = is_open.nonzero(as_tuple=True)
    values[values < kth - margin] = -torch.inf  # nearer than the k-th whatever the rounding
    values[values > kth + margin] = torch.inf
    values[row, place] = _exact(points, row, points, index[row, place])
    radii = values.kthvalue(k, dim=1).values
    num, keep = nearest.shape
    if keep < num - 1:  # points that were not kept may be as near: there are many copies
        for i in is_open[:, -1].nonzero()[:, 0].tolist():
            others = torch.cat([torch.arange(i), torch.arange(i + 1, len(points))])
            radii[i] = _exact(points, torch.full_like(others, i), points, others).kthvalue(k).values
    return radii


def inside_pairs(
    first: Points, second: Points, radii_first: Tensor | None = None, radii_second: Tensor | None = None
) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Yield the pairs (i, j) where point j of `second` lies in the ball of i of `first`, and those the other way round.

    Each element is for one block: ((i, j), (i, j)), in the second of which i lies in the ball of j. Balls are closed.

    Args:
        first: (N, D).
        second: (M, D).
        radii_first: squared radii (N,) in float64; None leaves the first pair empty.
        radii_second: squared radii (M,) in float64; None leaves the second pair empty.
    """
    nothing = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    for rows, columns in _blocks(len(first), len(second)):
        distances, error = _screen(first, rows, second, columns)
        found = [nothing, nothing]
        for side, radii in enumerate((radii_first, radii_second)):
            if radii is None:
                continue
            block_radii = radii[rows, None] if side == 0 else radii[columns]
            i, j = (distances <= (block_radii + error).float()).nonzero(as_tuple=True)
            i, j, distance = i + rows.start, j + columns.start, distances[i, j].double()
            limit = radii[i if side == 0 else j]
            inside = distance <= limit - error
            is_open = (~inside).nonzero()[:, 0]
            inside[is_open] = _exact(first, i[is_open], second, j[is_open]) <= limit[is_open]
            found[side] = (i[inside], j[inside])
        yield found[0], found[1]
