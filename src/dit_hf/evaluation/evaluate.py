"""All metrics of a set of images from one pass, with every setting that changes a number.

FID, sFID and KID are called so on the features of the Inception network of 2015 only; on others they are FD, sFD, KD.
"""

import json
import platform
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from ..generation.generate import start_inference_accelerator
from ..provenance import commit
from .features.extract import POOL, SPATIAL, Features, extract
from .features.extractors import FID_NAME, Extractor
from .features.images import Batch
from .features.reference import Reference, load_reference, make_reference
from .metrics.frechet import class_frechet_distances, frechet_distance
from .metrics.inception_score import SPLIT_SIZE
from .metrics.kernel_distance import NUM_SUBSETS, SUBSET_SIZE, kernel_distance
from .metrics.precision_recall import K_DENSITY_COVERAGE, K_PRECISION_RECALL, Mode, density_coverage, precision_recall


@dataclass(frozen=True)
class MetricSettings:
    """What the metrics depend on besides the features; the defaults are those of papers."""

    precision_recall_mode: Mode | None = None  # None: "adm_float16" on FID's features, as published; "exact" on others
    precision_recall_k: int = K_PRECISION_RECALL
    density_coverage_k: int = K_DENSITY_COVERAGE
    kid_num_subsets: int = NUM_SUBSETS
    kid_subset_size: int = SUBSET_SIZE
    kid_seed: int = 0
    inception_score_split_size: int = SPLIT_SIZE


class Unavailable(ValueError):
    """A metric needs what is not there."""


def _rows(samples: Features, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    if reference.rows is None:
        raise Unavailable("the reference has no images, only statistics")
    if samples.rows is None:
        raise Unavailable("the features of each sample were not kept")
    return reference.rows, samples.rows


def _check_neighbours(name: str, k: int, *sets: np.ndarray) -> None:
    fewest = min(map(len, sets))
    if k >= fewest:
        raise Unavailable(f"{name}={k} needs more images than that in a set, there are {fewest}")


def _frechet(samples: Features, reference: Reference, tap: str) -> float:
    moments = samples.moments()
    if tap not in moments:
        raise Unavailable(f"the extractor has no tap {tap!r}")
    if tap not in reference.moments:
        raise Unavailable(f"the reference has no statistics of the tap {tap!r}")
    ours, theirs = moments[tap], reference.moments[tap]
    for name, each in (("samples", ours), ("reference", theirs)):
        if each.num is not None and each.num <= len(each.mean):
            warnings.warn(
                f"{each.num} images in the {name} for {len(each.mean)} features: the covariance is singular and the "
                "distance far too large; compare it at equal numbers of images only",
                stacklevel=2,
            )
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)


def _fid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    return {"fid": _frechet(samples, reference, POOL)}


def _sfid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    return {"sfid": _frechet(samples, reference, SPATIAL)}


def _inception_score(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    scores = samples.total().scores
    if scores is None:
        raise Unavailable("the extractor has no logits")
    return {"inception_score": float(scores.scores().mean())}


def _precision_recall(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows, mode = _rows(samples, reference), settings.precision_recall_mode or "exact"
    _check_neighbours("precision_recall_k", settings.precision_recall_k, *rows)
    return precision_recall(*rows, k=settings.precision_recall_k, mode=mode)._asdict()


def _density_coverage(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows = _rows(samples, reference)
    _check_neighbours("density_coverage_k", settings.density_coverage_k, rows[0])  # balls of the reference only
    return density_coverage(*rows, k=settings.density_coverage_k)._asdict()


def _kid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    rows = _rows(samples, reference)
    size = settings.kid_subset_size
    if size > min(map(len, rows)):
        raise Unavailable(f"kid_subset_size={size} is more than the {min(map(len, rows))} images of the smaller set")
    distance = kernel_distance(*rows, num_subsets=settings.kid_num_subsets, subset_size=size, seed=settings.kid_seed)
    return {"kid": distance.mean, "kid_std": distance.std}


def _class_fid(samples: Features, reference: Reference, settings: MetricSettings) -> dict[str, float]:
    reference_rows, rows = _rows(samples, reference)
    if samples.labels is None or reference.labels is None:
        raise Unavailable("samples or reference have no labels")
    try:
        distances = class_frechet_distances(rows, samples.labels, reference_rows, reference.labels)
    except ValueError as error:  # other classes, or too few images of one
        raise Unavailable(str(error)) from error
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
ROW_METRICS = {"precision_recall", "kid", "density_coverage", "class_fid"}  # need the features of each image
# on other features than FID's
OTHER_NAMES = {"fid": "fd", "sfid": "sfd", "kid": "kd", "kid_std": "kd_std", "class_fid": "class_fd"}
TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
    "kid_std": "KID, std",
    "class_fid": "FID within classes",
    "fd": "FD",
    "sfd": "sFD",
    "kd": "KD",
    "kd_std": "KD, std",
    "class_fd": "FD within classes",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


@dataclass
class Evaluation:
    """Metrics by name, how far they vary, what could not be computed and why, and all settings."""

    metrics: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)  # a standard error, see `settings["spread"]`
    skipped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def table(self) -> str:
        """Lines for a terminal."""
        lines = [
            f"{TITLES[name]:<20}{value:>14.4f}" + (f"  +- {self.spread[name]:.4f}" if name in self.spread else "")
            for name, value in self.metrics.items()
        ]
        lines += [f"{name:<20}{'-':>14}  {reason}" for name, reason in self.skipped.items()]
        extractor = self.settings["extractor"]["name"]
        return "\n".join([f"{self.settings['num_images']} images, features of {extractor}", *lines])


def measure(
    samples: Features,
    reference: Reference,
    *,
    metrics: Sequence[str] | None = None,
    settings: MetricSettings | None = None,
) -> Evaluation:
    """Compute metrics from features; with several groups of samples, also a jackknife standard error of each.

    Args:
        samples: from `extract`.
        reference: what to compare with.
        metrics: names of `METRICS`; None is all that can be computed.
        settings: of the metrics.

    Raises:
        ValueError: if a metric is unknown, or one that was asked for cannot be computed.
    """
    settings = settings or MetricSettings()
    is_fid = samples.extractor["name"] == FID_NAME
    if settings.precision_recall_mode is None:
        settings = replace(settings, precision_recall_mode="adm_float16" if is_fid else "exact")
    check_metrics(metrics)
    found, skipped = _compute(samples, reference, metrics, settings)
    if metrics is not None and skipped:
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"{name} cannot be computed: {reason}")
    num_groups = len(samples.groups)
    spread: dict[str, float] = {}
    if num_groups > 1:
        # delete-a-group jackknife: (G - 1) / G sum (x_g - mean)^2, Efron & Tibshirani 1993, eq. 11.5
        parts = [_compute(samples.without_group(g), reference, metrics, settings)[0] for g in range(num_groups)]
        for name in found:
            values = np.array([part[name] for part in parts if name in part])
            if len(values) == num_groups:
                spread[name] = float(np.sqrt((num_groups - 1) * values.var()))
    if not is_fid:
        found, spread = ({OTHER_NAMES.get(name, name): each[name] for name in each} for each in (found, spread))
        skipped = {OTHER_NAMES.get(name, name): reason for name, reason in skipped.items()}
    about: dict[str, Any] = {"num_images": samples.num_images, "extractor": samples.extractor}
    about |= {"reference": reference.settings, "metrics": asdict(settings)}
    if num_groups > 1:
        about["spread"] = f"jackknife standard error over {num_groups} groups"
    return Evaluation(found, spread, skipped, about)


def average(results: Sequence[Evaluation]) -> Evaluation:
    """The mean of each metric over repetitions, such as seeds, and its standard deviation as the spread.

    Args:
        results: of the same settings but for the seed; one is returned as it is.
    """
    first, *others = results
    if not others:
        return first
    values = {name: [result.metrics[name] for result in results] for name in first.metrics}
    means = {name: float(np.mean(each)) for name, each in values.items()}
    spread = {name: float(np.std(each, ddof=1)) for name, each in values.items()}
    settings = {**first.settings, "samples": [result.settings.get("samples") for result in results]}
    settings |= {"each": values, "spread": f"standard deviation over {len(results)} repetitions"}
    return Evaluation(means, spread, first.skipped, settings)


def check_metrics(metrics: Sequence[str] | None) -> None:
    """Refuse names that are not in `METRICS`.

    Raises:
        ValueError: for the first of them.
    """
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown: choose from {', '.join(METRICS)}")


def _compute(
    samples: Features, reference: Reference, metrics: Sequence[str] | None, settings: MetricSettings
) -> tuple[dict[str, float], dict[str, str]]:
    found: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name in METRICS if metrics is None else metrics:
        try:
            found |= METRICS[name](samples, reference, settings)
        except Unavailable as reason:
            skipped[name] = str(reason)
    return found, skipped


def environment() -> dict[str, Any]:
    """Versions and commit that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": commit(),
    }


def evaluate(
    images: Iterable[Batch],
    reference: Reference | str | Path | Iterable[Batch],
    extractor: Extractor,
    *,
    num_images: int | None = None,
    metrics: Sequence[str] | None = None,
    settings: MetricSettings | None = None,
    num_groups: int = 1,
    work_dir: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Compare images with a reference.

    Args:
        images: as in `extract`: batches of uint8 (B, H, W, 3), with labels perhaps.
        reference: `Reference`, an `.npz` for `load_reference`, or images.
        extractor: gives the features; FID needs `InceptionExtractor.from_file`.
        num_images: how many to take; None is all.
        metrics: names of `METRICS`; None is all that can be computed.
        settings: of the metrics.
        num_groups: 2 or more computes the standard error of each metric, by leaving out one group of images after
            another; it takes that many times as long after the pass.
        work_dir: keeps features on the way, so that the same call goes on after a kill.
        about: how the images were made, for the result: sampler, steps, guidance, seed ...

    Raises:
        ValueError: for what does not fit, before any work where that can be known.
    """
    check_metrics(metrics)
    settings = settings or MetricSettings()
    folders = [None if work_dir is None else Path(work_dir) / name for name in ("reference", "samples")]
    if isinstance(reference, str | Path):
        reference = load_reference(reference, extractor, folders[0])
    elif not isinstance(reference, Reference):
        reference = make_reference(reference, extractor, work_dir=folders[0])
    samples = extract(
        images,
        extractor,
        num_images=num_images,
        keep_rows=metrics is None or bool(ROW_METRICS.intersection(metrics)),
        num_groups=num_groups,
        split_size=settings.inception_score_split_size,
        work_dir=folders[1],
    )
    results: list[Any] = [None]
    if start_inference_accelerator().is_main_process:  # the others wait, and get the same
        results = [measure(samples, reference, metrics=metrics, settings=settings)]
        results[0].settings |= {"samples": dict(about or {}), "environment": environment()}
    return broadcast_object_list(results)[0]
