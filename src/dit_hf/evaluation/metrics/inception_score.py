"""The Inception score as ADM's script computes it, from sums that grow with the images.

A classifier gives each image x the probabilities p(y|x) of K classes. Good samples are recognised with certainty, so
p(y|x) is sharp; and they are varied, so the mean p(y) over all samples is broad. The score is the exponential of the
mean divergence between the two,

    IS = exp(E_x KL(p(y|x) || p(y))) = exp(1/n sum_x sum_y p log p - sum_y p(y) log p(y)),

which lies between 1 and K. It knows no real images. The second form needs only two sums over the images.

The score is computed for each split of consecutive images, 5000 in ADM's script, and averaged. A split can only score
high if it holds many classes: images in the order of their classes score far too low.

Legend: B images, K classes, n images of a split.

Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SPLIT_SIZE = 5000  # ADM's


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities (B, K) of logits (B, K), in float64."""
    x = logits.astype(np.float64)
    x -= x.max(1, keepdims=True)
    np.exp(x, out=x)
    return x / x.sum(1, keepdims=True)


def _sum_p_log_p(probabilities: NDArray[np.float64]) -> float:
    """Return the sum of p log p, where 0 log 0 = 0."""
    return float((probabilities * np.log(np.where(probabilities > 0, probabilities, 1))).sum())


@dataclass
class _Split:
    num: int = 0  # images
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))  # sum over images (K,)
    p_log_p: float = 0.0  # sum over images and classes


@dataclass
class InceptionScoreSums:
    """The sums that the score needs of each split. They take the memory of K numbers for each split.

    Attributes:
        split_size: Number of images of a split.
        splits: Sums of each split, by its number.
    """

    split_size: int = SPLIT_SIZE
    splits: dict[int, _Split] = field(default_factory=lambda: defaultdict(_Split))

    def update(self, probabilities: NDArray[np.floating], index: NDArray[np.integer]) -> None:
        """Add predictions.

        Args:
            probabilities: Probabilities (B, K) of some images.
            index: Numbers of these images in the set (B,). Image k belongs to the split k // split_size.
        """
        splits = index // self.split_size
        for number in np.unique(splits).tolist():
            rows = probabilities[splits == number].astype(np.float64)
            self._add(number, _Split(len(rows), rows.sum(0), _sum_p_log_p(rows)))

    def merge(self, other: "InceptionScoreSums") -> None:
        """Add the sums of another process over the same set.

        Raises:
            ValueError: If the split sizes differ.
        """
        if other.split_size != self.split_size:
            raise ValueError(f"splits of {other.split_size} and {self.split_size} images cannot be merged")
        for number, split in other.splits.items():
            self._add(number, split)

    def _add(self, number: int, split: _Split) -> None:
        total = self.splits[number]
        total.num += split.num
        total.probabilities = total.probabilities + split.probabilities
        total.p_log_p += split.p_log_p

    def scores(self) -> NDArray[np.float64]:
        """Return the score of each split. The last split may be short; it counts fully in the mean, as in ADM's script.

        Raises:
            ValueError: If there are no images.
        """
        if not self.splits:
            raise ValueError("an Inception score needs images, there are none")
        # log IS = 1/n sum p log p - sum_y p(y) log p(y), Salimans et al. 2016, section 4
        splits = [split for _, split in sorted(self.splits.items())]
        return np.exp([split.p_log_p / split.num - _sum_p_log_p(split.probabilities / split.num) for split in splits])


def perfect_inception_score(labels: NDArray[np.integer], split_size: int = SPLIT_SIZE) -> float:
    """Return the Inception score that a classifier gives which is always right and always certain.

    No classifier gives a higher score to images of these classes in this order: the score of a split is the exponential
    of the entropy of its labels.

    Args:
        labels: Class of each image (N,).
        split_size: Number of images of a split.
    """
    numbers = np.unique(labels, return_inverse=True)[1]
    splits = [numbers[start : start + split_size] for start in range(0, len(numbers), split_size)]
    return float(np.mean([np.exp(-_sum_p_log_p(np.bincount(split) / len(split))) for split in splits]))


def inception_score(probabilities: NDArray[np.floating], split_size: int = SPLIT_SIZE) -> float:
    """Return the Inception score: the mean over splits of exp(E_x KL(p(y|x) || p(y))), in the order of the rows.

    Args:
        probabilities: Probabilities (N, K); each row sums to 1.
        split_size: Number of images of a split.

    Raises:
        ValueError: If the rows do not sum to 1, as logits do not.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise ValueError(f"rows of shape {probabilities.shape} are no probabilities: pass the softmax of the logits")
    sums = InceptionScoreSums(split_size)
    sums.update(probabilities, np.arange(len(probabilities)))
    return float(sums.scores().mean())
