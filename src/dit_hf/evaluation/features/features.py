"""What one pass over images leaves: statistics for the distances, sums for the Inception score, rows for the rest.

Statistics and sums grow in place, so their memory does not depend on the number of images. Only precision, recall and
the other metrics of neighbours need the features of each image; they are kept as rows.

Legend: N images of the set, D features of a tap.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.inception_score import InceptionScoreSums
from .statistics import GaussianStatistics, Moments


@dataclass
class GroupStatistics:
    """Statistics of a part of the images.

    Attributes:
        gaussians: Mean and covariance by tap.
        scores: Sums for the Inception score, or None if the extractor has no logits.
    """

    gaussians: dict[str, GaussianStatistics]
    scores: InceptionScoreSums | None

    def merge(self, other: "GroupStatistics") -> None:
        """Add the images that another object has seen."""
        for tap, gaussian in self.gaussians.items():
            gaussian.merge(other.gaussians[tap])
        if self.scores is not None and other.scores is not None:
            self.scores.merge(other.scores)


@dataclass
class Features:
    """What a pass over N images leaves.

    The images are divided into random groups. Computing the metrics without one group after another shows how far they
    vary (`without_group`).

    Attributes:
        extractor: Name of the extractor, and all that changes its numbers.
        groups: Statistics of each group.
        index: Numbers of the images (N,).
        group: Group of each image (N,).
        rows: Features (N, D) of the tap `pool`, or None if they were not kept.
        labels: Class of each image (N,), or None if the images have no labels.
        class_names: Name of each class, or None if the classes have no names.
        image_sizes: Heights and widths of the images, each once, in rising order.
    """

    extractor: dict[str, Any]
    groups: list[GroupStatistics]
    index: NDArray[np.int64]
    group: NDArray[np.int64]
    rows: NDArray[np.float32] | None
    labels: NDArray[np.integer] | None
    class_names: Sequence[str] | None
    image_sizes: list[tuple[int, int]]

    @property
    def num_images(self) -> int:
        """Number of images N."""
        return len(self.index)

    def total(self) -> GroupStatistics:
        """Return the statistics of all groups together."""
        if len(self.groups) == 1:
            return self.groups[0]
        whole = copy.deepcopy(self.groups[0])
        for group in self.groups[1:]:
            whole.merge(group)
        return whole

    def moments(self) -> dict[str, Moments]:
        """Return mean and covariance of each tap that has them."""
        return {tap: gaussian.moments() for tap, gaussian in self.total().gaussians.items()}

    def without_group(self, number: int) -> "Features":
        """Return the features of all images but those of one group."""
        stays = self.group != number
        rows, labels = (None if array is None else array[stays] for array in (self.rows, self.labels))
        return replace(
            self,
            groups=self.groups[:number] + self.groups[number + 1 :],
            index=self.index[stays],
            group=self.group[stays],
            rows=rows,
            labels=labels,
        )
