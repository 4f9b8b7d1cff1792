"""Which rows of a results file belong together in a figure, and their means over seeds."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from statistics import correlation, mean
from typing import NamedTuple

from ..configuration_dit import PATCHES, SIZES
from .results import REAL, Row

MODELS = tuple(f"{size}/{patch}" for size, patch in product(SIZES, PATCHES))


class Point(NamedTuple):
    """A value that several seeds measured: the mean, the lowest and the highest."""

    x: float
    y: float  # the mean
    low: float
    high: float


def trained(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of models, without those of real images."""
    return [row for row in rows if row.model != REAL]


def usual(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of models with the most frequent pair of number of steps and scale of guidance."""
    rows = trained(rows)
    counts = Counter((row.num_steps, row.guidance_scale) for row in rows)
    ((settings, _),) = counts.most_common(1) or [((0, 0.0), 0)]
    return [row for row in rows if (row.num_steps, row.guidance_scale) == settings]


def over_training(rows: Iterable[Row]) -> list[Row]:
    """Return the usual rows with the most frequent number of samples: distances of equal numbers can be compared."""
    rows = usual(rows)
    counts = Counter(row.num_samples for row in rows)
    return [row for row in rows if row.num_samples == counts.most_common(1)[0][0]]


def blocks_over_training(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows over training of each model that was trained with another block design than adaLN-Zero."""
    rows = over_training(rows)
    models = dict.fromkeys(row.model for row in rows if row.block_type != "adaln_zero")
    return {model: [row for row in rows if row.model == model] for model in models}


def sizes_over_training(rows: Iterable[Row]) -> list[Row]:
    """Return the adaLN-Zero rows over training that compare models.

    A number of images that only one of several models reached is left out.
    """
    rows = [row for row in over_training(rows) if row.block_type == "adaln_zero"]
    pairs = {(row.model, row.images_seen) for row in rows}
    reached = Counter(images_seen for _, images_seen in pairs)
    is_one = len({model for model, _ in pairs}) == 1
    return [row for row in rows if is_one or reached[row.images_seen] > 1]


def last_checkpoint(rows: Iterable[Row]) -> list[Row]:
    """Return the usual adaLN-Zero rows of the pair of checkpoint and number of samples that compares the most models.

    If two pairs compare equally many models, the later checkpoint is taken, then the larger number of samples.
    """
    rows = [row for row in usual(rows) if row.block_type == "adaln_zero"]
    groups: dict[tuple[int, int], set[str]] = {}
    for row in rows:
        groups.setdefault((row.images_seen, row.num_samples), set()).add(row.model)
    if not groups:
        return []
    chosen = max(groups, key=lambda group: (len(groups[group]), *group))
    return [row for row in rows if (row.images_seen, row.num_samples) == chosen]


def rows_by_steps(rows: Iterable[Row]) -> list[Row]:
    """Return the unguided adaLN-Zero rows of models that were sampled with several numbers of steps.

    The rows are of one checkpoint, number of samples and seed: those with which a model has the most numbers of steps.
    """
    groups: dict[tuple[int, int, int], dict[str, dict[int, Row]]] = {}
    for row in trained(rows):
        if row.guidance_scale == 1 and row.block_type == "adaln_zero":
            group = groups.setdefault((row.images_seen, row.num_samples, row.seed), {})
            group.setdefault(row.model, {})[row.num_steps] = row
    most = max(groups.values(), key=lambda group: max(map(len, group.values())), default={})
    return [row for by_steps in most.values() if len(by_steps) > 1 for row in by_steps.values()]


def floor(rows: Iterable[Row], num_samples: int) -> float | None:
    """Return the distance of `num_samples` held-out real images, or None if the results do not have it."""
    return next((row.distance for row in rows if row.model == REAL and row.num_samples == num_samples), None)


def points(rows: Sequence[Row], x: str, y: str = "distance") -> list[Point]:
    """Return means over seeds, in the order of `x`.

    Args:
        rows: Rows of one model.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
    """
    values: dict[float, list[float]] = {}
    for row in rows:
        values.setdefault(getattr(row, x), []).append(getattr(row, y))
    return [Point(at, mean(group), min(group), max(group)) for at, group in sorted(values.items())]


def log_correlation(gmacs: Sequence[float], values: Sequence[float]) -> float:
    """Return Pearson's correlation of values with the logarithm of `gmacs`, as in the paper's figure 8.

    The correlation of equal values is not defined: nan.
    """
    return math.nan if len(set(values)) == 1 else correlation([math.log(value) for value in gmacs], values)


def by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group the rows of the twelve models: S to XL, and for each size large patches first."""
    groups: dict[str, list[Row]] = {model: [] for model in MODELS}
    for row in rows:
        if row.model in groups:
            groups[row.model].append(row)
    return {model: group for model, group in groups.items() if group}
