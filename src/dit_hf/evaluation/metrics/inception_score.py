"""The Inception score as ADM computes it, from sums over consecutive splits that grow with the images.

Legend: B images, K classes.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SPLIT_SIZE = 5000  # ADM's


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities (B, K) of logits (B, K), in float64."""
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    np.exp(x, out=x)
    return x / x.sum(1, keepdims=True)


def _sum_p_log_p(probabilities: NDArray[np.float64]) -> float:
    """The sum of p log p, where 0 log 0 = 0."""
    return float((probabilities * np.log(np.where(probabilities > 0, probabilities, 1))).sum())


@dataclass
class _Split:
    num: int = 0
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))  # their sum, (K,)
    p_log_p: float = 0.0  # the sum over images and classes


@dataclass
class InceptionScoreSums:
    """What the score needs of each split of `split_size` consecutive images; memory is one row of K a split."""

    split_size: int = SPLIT_SIZE
    splits: dict[int, _Split] = field(default_factory=lambda: defaultdict(_Split))

    def update(self, probabilities: NDArray[np.floating], index: NDArray[np.integer]) -> None:
        """Add the predictions (B, K) of the images of these numbers (B,) in the set."""
        split = index // self.split_size
        for number in np.unique(split).tolist():
            rows = probabilities[split == number].astype(np.float64)
            self._add(number, _Split(len(rows), rows.sum(0), _sum_p_log_p(rows)))

    def merge(self, other: "InceptionScoreSums") -> None:
        """Add what another process saw of the same set.

        Raises:
            ValueError: if it has another split size.
        """
        if other.split_size != self.split_size:
            raise ValueError(f"splits of {other.split_size} and {self.split_size} images cannot be merged")
        for number, split in other.splits.items():
            self._add(number, split)

    def _add(self, number: int, split: _Split) -> None:
        mine = self.splits[number]
        mine.num += split.num
        mine.probabilities = mine.probabilities + split.probabilities
        mine.p_log_p += split.p_log_p

    def scores(self) -> NDArray[np.float64]:
        """The score of each split; the last may be short, and counts fully in the mean, as in ADM's.

        Raises:
            ValueError: if there are no images.
        """
        if not self.splits:
            raise ValueError("an Inception score needs images, there are none")
        # log IS = E_x KL(p(y|x) || p(y)) = (1/n) sum p log p - sum_y p(y) log p(y), Salimans et al. 2016, eq. in sec. 4
        splits = [split for _, split in sorted(self.splits.items())]
        return np.exp([split.p_log_p / split.num - _sum_p_log_p(split.probabilities / split.num) for split in splits])


def inception_score(probabilities: NDArray[np.floating], split_size: int = SPLIT_SIZE) -> float:
    """The mean over splits of exp(E_x KL(p(y|x) || p(y))), in the order of the rows.

    Args:
        probabilities: (n, K), each row sums to 1.
        split_size: images of a split.

    Raises:
        ValueError: if rows do not sum to 1: these may be logits.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise ValueError(f"rows of shape {probabilities.shape} are no probabilities: pass the softmax of the logits")
    sums = InceptionScoreSums(split_size)
    sums.update(probabilities, np.arange(len(probabilities)))
    return float(sums.scores().mean())
