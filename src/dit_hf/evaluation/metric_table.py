"""The table of metrics: what each takes from the features of samples and reference, and when it cannot be computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .comparability import warn_if_singular
from .features.extractors import POOL, SPATIAL
from .features.features import Features
from .features.reference import Reference
from .metrics.frechet import class_frechet_distances, frechet_distance
from .metrics.inception_score import SPLIT_SIZE
from .metrics.kernel_distance import NUM_SUBSETS, SUBSET_SIZE, kernel_distance
from .metrics.precision_recall import K_DENSITY_COVERAGE, K_PRECISION_RECALL, Mode, density_coverage, precision_recall


@dataclass(frozen=True)
class MetricSettings:
    """What the metrics depend on besides the features. The defaults are those of papers.

    Attributes:
        precision_recall_mode: Arithmetic of precision and recall. None takes `adm_float16` on the features of FID, with
            which the numbers in papers were made, and `exact` on others.
        precision_recall_k: Number of the neighbour that a ball of precision and recall reaches to.
        density_coverage_k: Number of the neighbour that a ball of density and coverage reaches to.
        kid_num_subsets: Number of subsets of KID.
        kid_subset_size: Number of images of a subset of KID.
        kid_seed: Seed of the subsets of KID.
        inception_score_split_size: Number of images of a split of the Inception score.
        inception_score_seed: Seed of the permutation of the images before they are split. None keeps their order, as
            ADM's script does; images in the order of their classes then score far too low.
    """

    precision_recall_mode: Mode | None = None
    precision_recall_k: int = K_PRECISION_RECALL
    density_coverage_k: int = K_DENSITY_COVERAGE
    kid_num_subsets: int = NUM_SUBSETS
    kid_subset_size: int = SUBSET_SIZE
    kid_seed: int = 0
    inception_score_split_size: int = SPLIT_SIZE
    inception_score_seed: int | None = None


class MetricUnavailable(ValueError):
    """A metric lacks what it is computed from; the message says what."""


def _get_rows(samples: Features, reference: Reference) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the rows of the reference and of the samples."""
    if reference.rows is None:
        raise MetricUnavailable("the reference has no images, only statistics")
    if samples.rows is None:
        raise MetricUnavailable("the features of each sample were not kept")
    return reference.rows, samples.rows


def _check_neighbours(name: str, k: int, *sets: NDArray[np.float32]) -> None:
    fewest = min(map(len, sets))
    if k >= fewest:
        raise MetricUnavailable(f"{name}={k} needs more images than that in a set, there are {fewest}")


def _frechet(samples: Features, reference: Reference, tap: str) -> float:
    moments = samples.moments()
    if tap not in moments:
        raise MetricUnavailable(f"the extractor has no tap {tap!r}")
    if tap not in reference.moments:
        raise MetricUnavailable(f"the reference has no statistics of the tap {tap!r}")
    of_samples, of_reference = moments[tap], reference.moments[tap]
    warn_if_singular("samples", of_samples)
    warn_if_singular("reference", of_reference)
    return frechet_distance(of_samples.mean, of_samples.covariance, of_reference.mean, of_reference.covariance)


def _fid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    return {"fid": _frechet(samples, reference, POOL)}


def _sfid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    return {"sfid": _frechet(samples, reference, SPATIAL)}


def _inception_score(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    scores = samples.total().scores
    if scores is None:
        raise MetricUnavailable("the extractor has no logits")
    return {"inception_score": float(scores.scores().mean())}


def _precision_recall(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows, mode = _get_rows(samples, reference), settings.precision_recall_mode or "exact"
    _check_neighbours("precision_recall_k", settings.precision_recall_k, *rows)
    return precision_recall(*rows, k=settings.precision_recall_k, mode=mode)._asdict()


def _density_coverage(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows = _get_rows(samples, reference)
    _check_neighbours("density_coverage_k", settings.density_coverage_k, rows[0])  # balls of the reference only
    return density_coverage(*rows, k=settings.density_coverage_k)._asdict()


def _kid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows = _get_rows(samples, reference)
    size, fewest = settings.kid_subset_size, min(map(len, rows))
    if size > fewest:
        raise MetricUnavailable(
            f"kid_subset_size={size} is more than the {fewest} images of the smaller set: set it lower"
        )
    distance = kernel_distance(*rows, num_subsets=settings.kid_num_subsets, subset_size=size, seed=settings.kid_seed)
    return {"kid": distance.mean, "kid_std": distance.std}


def _check_class_names(samples: Sequence[str] | None, reference: Sequence[str] | None) -> None:
    """Refuse classes that have the same numbers and other names."""
    if samples is None or reference is None or list(samples) == list(reference):
        return
    differing = [pair for pair in zip(samples, reference, strict=False) if pair[0] != pair[1]]
    example = "{!r} in the samples is {!r} in the reference".format(*differing[0]) if differing else "one has more"
    raise MetricUnavailable(f"samples and reference have other classes: {example}")


def _class_fid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows_of_reference, rows_of_samples = _get_rows(samples, reference)
    if samples.labels is None or reference.labels is None:
        raise MetricUnavailable("samples or reference have no labels")
    _check_class_names(samples.class_names, reference.class_names)
    try:
        distances = class_frechet_distances(rows_of_samples, samples.labels, rows_of_reference, reference.labels)
    except ValueError as error:  # the classes differ, or a class has too few images
        raise MetricUnavailable(str(error)) from error
    return {"class_fid": float(np.mean(list(distances.values())))}


Metric = Callable[[Features, Reference, MetricSettings], dict[str, float]]
METRICS: dict[str, Metric] = {
    "fid": _fid,
    "sfid": _sfid,
    "inception_score": _inception_score,
    "precision_recall": _precision_recall,
    "kid": _kid,
    "density_coverage": _density_coverage,
    "class_fid": _class_fid,
}
ROW_METRICS = {"precision_recall", "kid", "density_coverage", "class_fid"}  # these need the features of each image


def check_metrics(metrics: Sequence[str] | None) -> None:
    """Refuse names that are not in `METRICS`.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown: choose from {', '.join(METRICS)}")
