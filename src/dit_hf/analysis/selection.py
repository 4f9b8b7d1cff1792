"""Which rows of a results file belong together in a figure, and their means over seeds."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import correlation, mean
from typing import NamedTuple

from ..configuration_dit import PATCHES, SIZES
from .results import REAL, Row


class Point(NamedTuple):
    """A value over seeds."""

    x: float
    y: float  # the mean
    low: float
    high: float


def trained(rows: Iterable[Row]) -> list[Row]:
    """The rows of models."""
    return [row for row in rows if row.model != REAL]


def usual(rows: Iterable[Row]) -> list[Row]:
    """The rows of models with the most frequent number of steps and scale of guidance."""
    rows = trained(rows)
    counts = Counter((row.num_steps, row.guidance_scale) for row in rows)
    ((settings, _),) = counts.most_common(1) or [((0, 0.0), 0)]
    return [row for row in rows if (row.num_steps, row.guidance_scale) == settings]


def over_training(rows: Iterable[Row]) -> list[Row]:
    """The usual rows with the number of samples that most of them have: those can be compared over training."""
    rows = usual(rows)
    counts = Counter(row.num_samples for row in rows)
    return [row for row in rows if row.num_samples == counts.most_common(1)[0][0]]


def sizes_over_training(rows: Iterable[Row]) -> list[Row]:
    """The adaLN-Zero rows over training, without checkpoints that a single one of several models reached."""
    rows = [row for row in over_training(rows) if row.block_type == "adaln_zero"]
    pairs = {(row.model, row.images_seen) for row in rows}
    reached = Counter(images_seen for _, images_seen in pairs)
    is_one = len({model for model, _ in pairs}) == 1
    return [row for row in rows if is_one or reached[row.images_seen] > 1]


def last_checkpoint(rows: Iterable[Row]) -> list[Row]:
    """The usual adaLN-Zero rows of one checkpoint and number of samples: of the most models, then the latest."""
    rows = [row for row in usual(rows) if row.block_type == "adaln_zero"]
    groups: dict[tuple[int, int], set[str]] = {}
    for row in rows:
        groups.setdefault((row.images_seen, row.num_samples), set()).add(row.model)
    if not groups:
        return []
    chosen = max(groups, key=lambda group: (len(groups[group]), *group))
    return [row for row in rows if (row.images_seen, row.num_samples) == chosen]


def floor(rows: Iterable[Row], num_samples: int) -> float | None:
    """The distance of as many held-out real images, if it was measured."""
    return next((row.distance for row in rows if row.model == REAL and row.num_samples == num_samples), None)


def points(rows: Sequence[Row], x: str, y: str = "distance") -> list[Point]:
    """Means over seeds, by x.

    Args:
        rows: of one model.
        x: a column.
        y: a column.
    """
    values: dict[float, list[float]] = {}
    for row in rows:
        values.setdefault(getattr(row, x), []).append(getattr(row, y))
    return [Point(at, mean(group), min(group), max(group)) for at, group in sorted(values.items())]


def log_correlation(gmacs: Sequence[float], values: Sequence[float]) -> float:
    """Pearson's correlation of values with the logarithm of Gflops, as in the paper's figure 8; nan of constants."""
    return math.nan if len(set(values)) == 1 else correlation([math.log(value) for value in gmacs], values)


def by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each model, S to XL, large patches first."""
    rows = list(rows)
    names = [f"{size}/{patch}" for size in SIZES for patch in PATCHES]
    found = {name: [row for row in rows if row.model == name] for name in names}
    return {name: group for name, group in found.items() if group}
