"""Which points lie in which balls, decided as float64 does, at the speed of a float32 matrix product.

Squared distances |x|^2 - 2 x . y + |y|^2 come from a float32 matrix product, whose error has a bound. If a distance is
nearer to the radius than the bound, it is computed again in float64 from the difference of the two points. So every
answer is that of brute force in float64.

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
    """Rows, with their centred copies in float32 and the norms of these.

    Args:
        rows: Rows (N, D), finite.
        centre: Point (D,) near the middle of the rows. Distances do not depend on it; their rounding does.

    Raises:
        ValueError: If the rows are not finite, or too large for float32.
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
    """Return two sets of rows as points with a common centre.

    Args:
        first: Rows (N, D).
        second: Rows (M, D).

    Raises:
        ValueError: If the numbers of features differ.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features of shapes {first.shape} and {second.shape} cannot be compared: pass (N, D), (M, D)")
    centre = first.mean(0, dtype=np.float64)
    return Points(first, centre), Points(second, centre)


def _blocks(num_rows: int, num_columns: int, triangle: bool = False) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks of a matrix; with `triangle`, only those that reach the diagonal or lie above it."""
    for top in range(0, num_rows, ROWS):
        first = top // COLUMNS * COLUMNS if triangle else 0
        for left in range(first, num_columns, COLUMNS):
            yield slice(top, min(top + ROWS, num_rows)), slice(left, min(left + COLUMNS, num_columns))


def _screen(first: Points, rows: slice, second: Points, columns: slice) -> tuple[Tensor, float]:
    """Return the squared distances of a block in float32, and a bound of their error.

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
    """Return the squared distances of the pairs (i, j), from differences in float64."""
    distances = [
        torch.linalg.vecdot(difference, difference)
        for part_i, part_j in zip(i.split(PAIRS), j.split(PAIRS), strict=True)
        for difference in [first.exact[part_i].double() - second.exact[part_j].double()]
    ]
    return torch.cat(distances) if distances else torch.empty(0, dtype=torch.float64)


def squared_radii(points: Points, k: int) -> Tensor:
    """Return the squared distance of each point to the k-th nearest other point (N,), in float64.

    Args:
        points: Points (N, D).
        k: Number of the neighbour, 1..N - 1.

    Raises:
        ValueError: If there are no more than k points.
    """
    num = len(points)
    if not 1 <= k < num:
        raise ValueError(f"k={k} is outside 1..{num - 1}: a ball needs k other points, there are {num} in the set")
    keep = min(k + SPARE, num - 1)
    nearest = torch.full((num, keep), torch.inf)
    index = torch.full((num, keep), -1)
    tolerance = torch.zeros(num)

    def keep_nearest(rows: slice, distances: Tensor, columns: slice, error: float) -> None:
        """Keep the nearest neighbours among those kept so far and the columns of the block."""
        values, positions = distances.topk(min(keep, distances.shape[1]), dim=1, largest=False, sorted=False)
        values = torch.cat([nearest[rows], values], 1)
        nearest[rows], order = values.topk(keep, dim=1, largest=False)
        index[rows] = torch.cat([index[rows], positions + columns.start], 1).gather(1, order)
        tolerance[rows] = tolerance[rows].clamp(min=error)

    for rows, columns in _blocks(num, num, triangle=True):
        distances, error = _screen(points, rows, points, columns)
        if rows.start >= columns.start:  # the block holds a part of the diagonal: no point is its own neighbour
            distances.diagonal(rows.start - columns.start).fill_(torch.inf)
        else:  # the mirrored block is not computed
            keep_nearest(columns, distances.T.contiguous(), rows, error)
        keep_nearest(rows, distances, columns, error)
    return _settle(points, k, nearest, index, tolerance)


def _settle(points: Points, k: int, nearest: Tensor, index: Tensor, tolerance: Tensor) -> Tensor:
    """Return the k-th squared distance in float64.

    Args:
        points: Points (N, D).
        k: Number of the neighbour.
        nearest: Squared distances (N, K) of each point to its K nearest neighbours, in float32.
        index: Numbers of these neighbours (N, K).
        tolerance: Bound of the error of `nearest` (N,).
    """
    values, margin = nearest.double(), 2 * tolerance.double()[:, None]
    kth = values[:, k - 1 : k].clone()
    is_open = (values >= kth - margin) & (values <= kth + margin)
    row, column = is_open.nonzero(as_tuple=True)
    values[values < kth - margin] = -torch.inf  # nearer than the k-th whatever the rounding
    values[values > kth + margin] = torch.inf
    values[row, column] = _exact(points, row, points, index[row, column])
    radii = values.kthvalue(k, dim=1).values
    num, keep = nearest.shape
    if keep < num - 1:  # if there are many copies, points that were not kept may be as near
        for i in is_open[:, -1].nonzero()[:, 0].tolist():
            all_but_i = torch.cat([torch.arange(i), torch.arange(i + 1, len(points))])
            radii[i] = _exact(points, torch.full_like(all_but_i, i), points, all_but_i).kthvalue(k).values
    return radii


def inside_pairs(
    first: Points, second: Points, radii_first: Tensor | None = None, radii_second: Tensor | None = None
) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Yield, for each block of pairs, which points lie in which balls.

    The element of a block is ((i, j), (i, j)). In the first pair of arrays, point j of `second` lies in the ball of
    point i of `first`; in the other, point i of `first` lies in the ball of point j of `second`. Balls are closed.

    Args:
        first: Points (N, D).
        second: Points (M, D).
        radii_first: Squared radii (N,) in float64. None leaves the first pair of arrays empty.
        radii_second: Squared radii (M,) in float64. None leaves the other pair of arrays empty.
    """
    no_pairs = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    for rows, columns in _blocks(len(first), len(second)):
        distances, error = _screen(first, rows, second, columns)
        pairs = [no_pairs, no_pairs]
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
            pairs[side] = (i[inside], j[inside])
        yield pairs[0], pairs[1]
