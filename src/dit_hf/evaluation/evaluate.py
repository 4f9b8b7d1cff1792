"""All metrics of a set of images from one pass, with every setting that changes a number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from ..distributed import start_inference_accelerator
from ..provenance import environment
from .comparability import warn_of_class_order, warn_of_other_sizes
from .features.extract import check_num_images, extract
from .features.extractors import FID_NAME, Extractor
from .features.features import Features
from .features.images import Batch
from .features.reference import Reference, load_reference, make_reference
from .metric_table import METRICS, ROW_METRICS, MetricSettings, MetricUnavailable, check_metrics
from .result import Evaluation, rename_for_other_features


def measure(
    samples: Features,
    reference: Reference,
    *,
    metrics: Sequence[str] | None = None,
    settings: MetricSettings | None = None,
) -> Evaluation:
    """Compute metrics from features. With several groups of samples, also compute the standard error of each metric.

    Args:
        samples: Features of the samples, from `extract`.
        reference: Real images to compare with.
        metrics: Names of `METRICS`; None takes all that can be computed.
        settings: Settings of the metrics. Default: `MetricSettings()`.

    Raises:
        ValueError: If a metric is unknown, or if a metric of `metrics` cannot be computed.
    """
    check_metrics(metrics)
    settings = settings or MetricSettings()
    is_fid = samples.extractor["name"] == FID_NAME
    if settings.precision_recall_mode is None:
        settings = replace(settings, precision_recall_mode="adm_float16" if is_fid else "exact")
    _warn_of_what_does_not_compare(samples, reference, metrics, settings)
    values, skipped = _compute(samples, reference, metrics, settings)
    if metrics is not None and skipped:
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"{name} cannot be computed: {reason}")
    spread = _standard_errors(values, samples, reference, metrics, settings)
    if not is_fid:
        values, spread = rename_for_other_features(values), rename_for_other_features(spread)
        skipped = rename_for_other_features(skipped)
    result_settings: dict[str, Any] = {"num_images": samples.num_images, "extractor": samples.extractor}
    result_settings["image_sizes"] = [list(size) for size in samples.image_sizes]  # as JSON gives them back
    result_settings |= {"reference": reference.settings, "metrics": asdict(settings)}
    if len(samples.groups) > 1:
        result_settings["spread"] = f"jackknife standard error over {len(samples.groups)} groups"
    return Evaluation(values, spread, skipped, result_settings)


def _warn_of_what_does_not_compare(
    samples: Features, reference: Reference, metrics: Sequence[str] | None, settings: MetricSettings
) -> None:
    warn_of_other_sizes(samples.image_sizes, reference.image_sizes)
    has_score = samples.groups[0].scores is not None and (metrics is None or "inception_score" in metrics)
    if has_score and samples.labels is not None and settings.inception_score_seed is None:
        warn_of_class_order(samples.labels, settings.inception_score_split_size)


def _compute(
    samples: Features, reference: Reference, metrics: Sequence[str] | None, settings: MetricSettings
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the values of the metrics, and the reasons why others cannot be computed."""
    values: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name in METRICS if metrics is None else metrics:
        try:
            values |= METRICS[name](samples, reference, settings)
        except MetricUnavailable as reason:
            skipped[name] = str(reason)
    return values, skipped


def _standard_errors(
    values: Mapping[str, float],
    samples: Features,
    reference: Reference,
    metrics: Sequence[str] | None,
    settings: MetricSettings,
) -> dict[str, float]:
    """Return the jackknife standard error of each metric that can be computed without any one group."""
    num_groups = len(samples.groups)
    if num_groups == 1:
        return {}
    without = [_compute(samples.without_group(g), reference, metrics, settings)[0] for g in range(num_groups)]
    errors = {}
    for name in values:
        leave_one_out = np.array([part[name] for part in without if name in part])
        if len(leave_one_out) == num_groups:
            # delete-a-group jackknife: sqrt((G - 1) / G sum (x_g - mean)^2), Efron & Tibshirani 1993, eq. 11.5
            errors[name] = float(np.sqrt((num_groups - 1) * leave_one_out.var()))
    return errors


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
    sample_settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Compare images with a reference. Every process of a launcher calls this function and gets the same result.

    Args:
        images: Batches of uint8 (B, H, W, 3), with or without labels, as in `extract`.
        reference: `Reference`, a file `.npz` for `load_reference`, or batches of images.
        extractor: Network that gives the features. `InceptionExtractor.from_file()` gives those of FID.
        num_images: Number of images to take from the beginning; None takes all.
        metrics: Names of `METRICS`; None takes all that can be computed.
        settings: Settings of the metrics. Default: `MetricSettings()`.
        num_groups: Number of groups of images. From 2 on, the standard error of each metric is computed by leaving out
            one group after another, which takes that many times as long after the pass.
        work_dir: Folder that keeps the features, so that the same call goes on after a kill.
        sample_settings: How the images were made (sampler, steps, guidance, seed ...), for the result.

    Raises:
        ValueError: If an argument does not fit, before any work if that can be known.
    """
    check_metrics(metrics)
    check_num_images(images, num_images)
    settings = settings or MetricSettings()
    work_dirs = {name: None if work_dir is None else Path(work_dir) / name for name in ("reference", "samples")}
    if isinstance(reference, str | Path):
        reference = load_reference(reference, extractor, work_dirs["reference"])
    elif not isinstance(reference, Reference):
        reference = make_reference(reference, extractor, work_dir=work_dirs["reference"])
    samples = extract(
        images,
        extractor,
        num_images=num_images,
        keep_rows=metrics is None or bool(ROW_METRICS.intersection(metrics)),
        num_groups=num_groups,
        split_size=settings.inception_score_split_size,
        split_seed=settings.inception_score_seed,
        work_dir=work_dirs["samples"],
    )
    accelerator = start_inference_accelerator()
    results: list[Any] = [None]
    if accelerator.is_main_process:
        results = [measure(samples, reference, metrics=metrics, settings=settings)]
        results[0].settings |= {
            "samples": dict(sample_settings or {}),
            "environment": environment(accelerator.device),
        }
    return broadcast_object_list(results)[0]
