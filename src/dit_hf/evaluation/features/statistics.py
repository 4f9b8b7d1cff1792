"""Mean and covariance of features in one pass and float64, in the memory of one covariance whatever the number of rows.

Legend: n rows, D features.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 4096  # rows that are turned into float64 together


class Moments(NamedTuple):
    """What the Fréchet distance needs of a set of features."""

    mean: NDArray[np.floating]  # (D,)
    covariance: NDArray[np.floating]  # (D, D)
    num: int | None = None  # rows they come from; None where a file does not say


@dataclass
class GaussianStatistics:
    """Mean and covariance that grow with `update` and `merge`; start with `GaussianStatistics.empty(D)`.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """

    num: int
    mean: NDArray[np.float64]  # (D,)
    scatter: NDArray[np.float64]  # (D, D), the sum over rows of (x - mean)(x - mean)^T

    @classmethod
    def empty(cls, size: int) -> "GaussianStatistics":
        """Statistics of no rows of `size` features."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def update(self, features: NDArray[np.floating]) -> None:
        """Add rows (n, D); many at once are quicker than few.

        Raises:
            ValueError: if they have another number of features, or are not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features of shape {features.shape} do not fit statistics of {len(self.mean)} features")
        for start in range(0, len(features), BLOCK_ROWS):
            rows = features[start : start + BLOCK_ROWS].astype(np.float64)
            mean = rows.mean(0)
            if not np.isfinite(mean).all():
                raise ValueError(f"the features of rows {start}..{start + len(rows) - 1} are not finite")
            rows -= mean
            self.merge(GaussianStatistics(len(rows), mean, rows.T @ rows))

    def merge(self, other: "GaussianStatistics") -> None:
        """Add the rows that other statistics saw.

        Raises:
            ValueError: if they are of another number of features.
        """
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"statistics of {len(other.mean)} and {len(self.mean)} features cannot be merged")
        if not other.num:
            return
        total = self.num + other.num
        delta = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(delta * (self.num * other.num / total), delta)
        self.mean += delta * (other.num / total)
        self.num = total

    def moments(self) -> Moments:
        """Mean and unbiased covariance (divisor n - 1, as ADM's).

        Raises:
            ValueError: for fewer than two rows.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 images, there are {self.num}")
        return Moments(self.mean, self.scatter / (self.num - 1), self.num)

    def state(self) -> dict[str, Any]:
        """Arrays from which `GaussianStatistics(**state)` resumes; scatter is symmetric, and kept whole."""
        return {"num": self.num, "mean": self.mean, "scatter": self.scatter}
