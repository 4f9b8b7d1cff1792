"""How soon a training reaches a distance: the figure of merit of the record in `runs/speedrun`.

Between two checkpoints, the logarithm of the distance is taken to fall linearly with the logarithm of the images seen:

    log d(n) = log d_1 + (log d_2 - log d_1) (log n - log n_1) / (log n_2 - log n_1)

and CPU seconds to grow linearly with the images seen, since every step costs the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from .results import Row


class Reached(NamedTuple):
    """When a training has reached a distance.

    Args:
        images: Number of images seen.
        cpu_seconds: CPU seconds of the training; NaN if they were not counted.
    """

    images: float
    cpu_seconds: float


def reach(rows: Iterable[Row], target: float, column: str = "distance") -> Reached | None:
    """Return when a training first reaches a distance, or None if it does not, or was not measured.

    If the first checkpoint is below the distance already, the images of that checkpoint are returned: an upper limit.

    Args:
        rows: Rows of one training, each at its own number of images.
        target: Distance to reach, above 0.
        column: Column of the distance: "distance" or "second_distance".
    """
    ordered = sorted((row for row in rows if getattr(row, column) > 0), key=lambda row: row.images_seen)
    if ordered and getattr(ordered[0], column) <= target:
        return Reached(ordered[0].images_seen, ordered[0].train_cpu_seconds)
    for before, after in pairwise(ordered):
        if getattr(after, column) <= target:
            high, low = math.log(getattr(before, column)), math.log(getattr(after, column))
            passed = (high - math.log(target)) / (high - low)  # share of the way, in logarithms
            images = before.images_seen * (after.images_seen / before.images_seen) ** passed
            share = (images - before.images_seen) / (after.images_seen - before.images_seen)
            seconds = after.train_cpu_seconds - before.train_cpu_seconds
            return Reached(images, before.train_cpu_seconds + share * seconds)
    return None


def mean_curve(trainings: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of the first training with means over all trainings, where all of them were measured.

    Args:
        trainings: Rows of each seed.
    """
    by_images = [{row.images_seen: row for row in rows} for rows in trainings]
    common = [[each[images] for each in by_images] for images in sorted(set.intersection(*map(set, by_images)))]
    columns = ("distance", "second_distance", "train_cpu_seconds")
    return [replace(rows[0], **{name: mean(getattr(row, name) for row in rows) for name in columns}) for rows in common]
