"""Mean and covariance of features in one pass, in float64, without keeping the features.

Two parts a and b of a set have the means m_a, m_b and the scatters S = sum (x - m)(x - m)^T. With d = m_b - m_a, the
whole has (Chan, Golub, LeVeque 1983, eq. 2.1)

    m = m_a + d n_b / n,    S = S_a + S_b + d d^T n_a n_b / n,    n = n_a + n_b.

So statistics can grow batch by batch, and those of several processes can be merged; no term cancels as in the formula
E[x x^T] - m m^T, which loses digits if the means are large.

Legend: n rows, D features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 4096  # rows that are turned into float64 together


class Moments(NamedTuple):
    """What the Fréchet distance needs of a set of features.

    Attributes:
        mean: Mean (D,).
        covariance: Covariance (D, D).
        num: Number of rows behind them, or None if the file they were read from does not say.
    """

    mean: NDArray[np.floating]
    covariance: NDArray[np.floating]
    num: int | None = None


@dataclass
class GaussianStatistics:
    """Mean and covariance that grow with `update` and `merge`; begin with `GaussianStatistics.empty(D)`.

    Attributes:
        num: Number of rows n.
        mean: Mean (D,).
        scatter: Sum over the rows of (x - mean)(x - mean)^T (D, D).

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """

    num: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> "GaussianStatistics":
        """Return the statistics of no rows of `size` features."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def update(self, features: NDArray[np.floating]) -> None:
        """Add rows of features. Many rows at once are quicker than few.

        Args:
            features: Rows (n, D).

        Raises:
            ValueError: If the number of features differs, or if a feature is not finite.
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
        """Add the rows that other statistics have seen.

        Raises:
            ValueError: If the numbers of features differ.
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
        """Return mean and unbiased covariance (divisor n - 1, as in ADM's script).

        Raises:
            ValueError: If there are fewer than two rows.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 images, there are {self.num}")
        return Moments(self.mean, self.scatter / (self.num - 1), self.num)
