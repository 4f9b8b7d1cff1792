"""The work of `dit-hf evaluate`: opens an extractor, a model and a reference by name, and puts all together."""

import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from ..cards.results import write_results
from ..distributed import start_inference_accelerator
from ..generation.batches import iterate_batches
from ..generation.from_pipeline import choose_labels, pipeline_sampler, pipeline_settings
from ..pipeline_dit import DiTPipeline
from .evaluate import evaluate
from .features.adm import npz_names
from .features.extract import check_num_images
from .features.extractors import DINOV2, DINOv2Extractor, Extractor, InceptionExtractor
from .features.images import Batch, ImageBatches
from .features.reference import Reference, load_reference, make_reference
from .metric_table import MetricSettings, check_metrics
from .result import Evaluation, average
from .sources import SourceOptions, open_batches


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn from a model.

    Attributes:
        guidance_scale: Strength of classifier-free guidance; 1 is none.
        num_inference_steps: Number of steps. None takes the scheduler's usual number.
        labels: `random`, `balanced`, or a text file with a class id or name on each line. None is `random` if the model
            has classes.
        seed: Seed of the noise and of random labels.
        num_seeds: Number of times that all images are drawn, with the seeds `seed`, `seed + 1`, ...
        dtype: Name of the type that the model computes in.
    """

    guidance_scale: float = 1.0
    num_inference_steps: int | None = None
    labels: str | None = None
    seed: int = 0
    num_seeds: int = 1
    dtype: str = "float32"


@dataclass(frozen=True)
class ExtractorChoice:
    """The network that gives the features.

    Attributes:
        name: `inception`, `dinov2`, or a class in a file of yours, such as `my_network.py:MyNetwork`. The class is
            called without arguments, or with `weights` if they are given.
        weights: File of the Inception network's weights, or folder or id of a DINOv2 model. None downloads them.
    """

    name: str = "inception"
    weights: str | None = None

    def open(self) -> Extractor:
        """Return the extractor on the device of this process.

        Raises:
            ValueError: If the name is unknown.
        """
        device = start_inference_accelerator().device
        if self.name == "inception":
            return InceptionExtractor.from_file(self.weights, device)
        if self.name == "dinov2":
            return DINOv2Extractor(self.weights or DINOV2, device)
        file, _, class_name = self.name.rpartition(":")
        if not file.endswith(".py"):
            raise ValueError(
                f"extractor {self.name!r} is unknown: choose inception, dinov2, or a class as my_network.py:Name"
            )
        members = runpy.run_path(file)
        if class_name not in members:
            raise ValueError(
                f"{file} has no {class_name!r}: name a class with the members of dit_hf.evaluation.Extractor"
            )
        return members[class_name](*([self.weights] if self.weights else []))


def model_batches(
    pipeline: Any,
    num_images: int | None,
    *,
    labels: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    **arguments: Any,
) -> tuple[ImageBatches, dict[str, Any]]:
    """Return images that a pipeline draws when they are asked for, and all settings that they depend on.

    Args:
        pipeline: `DiTPipeline` on its device.
        num_images: Number of images. None takes the number of lines of the file of labels.
        labels: `random`, `balanced`, or a text file with a class id or name on each line. None is `random` if the model
            has classes.
        seed: Seed of the noise and of random labels.
        batch_size: Number of images drawn at once.
        **arguments: Arguments of each call of the pipeline, such as `guidance_scale`.

    Raises:
        ValueError: If the labels or the number of images do not fit the model or each other.
    """
    ids, num_images = choose_labels(pipeline, labels, num_images, seed)
    settings = {"label_scheme": labels or ("random" if ids else None), "seed": seed, "batch_size": batch_size}
    settings |= pipeline_settings(pipeline, **arguments)
    settings |= {"latents": pipeline.transformer.config.in_channels, "diffusers": diffusers.__version__}
    settings |= {"vae": None if pipeline.vae is None else pipeline.vae.config.get("_name_or_path")}
    settings |= {"num_images": num_images, "transformers": transformers.__version__}
    sample = pipeline_sampler(pipeline, **arguments)

    def read(start: int, stop: int) -> Batch:
        batches = [start // batch_size]
        [images] = iterate_batches(sample, num_images, labels=ids, seed=seed, batch_size=batch_size, batches=batches)
        return images if ids is None else (images, np.array(ids[start:stop]))

    source = json.dumps(settings, default=str)
    return ImageBatches(num_images, batch_size, read, source=source, is_costly=True), settings


def find_reference(
    reference: str, options: SourceOptions, work_dir: Path | None = None
) -> Callable[[Extractor], Reference]:
    """Open a file `.npz` with statistics or images, or anything that `open_batches` takes, to compare with.

    Args:
        reference: File, folder, or id on the Hub.
        options: How to read the images.
        work_dir: Folder in whose folder `reference` the features are kept.

    Returns:
        Function from the extractor to the reference. The extractor may be large, so it is opened after all else.

    Raises:
        ValueError: If the reference cannot be read.
    """
    folder = None if work_dir is None else work_dir / "reference"
    if reference.endswith(".npz"):
        npz_names(reference)  # an error comes before the work
        return lambda extractor: load_reference(reference, extractor, folder)
    images = open_batches(reference, options)
    return lambda extractor: make_reference(images, extractor, reference, folder)


def save_statistics(
    samples: str,
    path: Path,
    extractor: ExtractorChoice,
    options: SourceOptions,
    *,
    num_images: int | None = None,
    work_dir: Path | None = None,
) -> None:
    """Write the statistics of images to a file, as the reference of later evaluations.

    Args:
        samples: File, folder, or id on the Hub.
        path: File to write, which ends in `.npz`.
        extractor: Network that gives the features.
        options: How to read the images.
        num_images: Number of images to take from the beginning; None takes all.
        work_dir: Folder that keeps the features, so that the same call goes on after a kill.

    Raises:
        ValueError: If `path` does not end in `.npz`, or if the images cannot be read.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a file of statistics must end in .npz")
    images = open_batches(samples, options)
    check_num_images(images, num_images)
    statistics = make_reference(images, extractor.open(), samples, work_dir, num_images)
    if start_inference_accelerator().is_main_process:
        statistics.save(path)


def evaluate_source(
    samples: str,
    reference: str,
    extractor: ExtractorChoice,
    settings: MetricSettings,
    options: SourceOptions,
    *,
    num_images: int | None = None,
    metrics: Sequence[str] | None = None,
    num_groups: int = 1,
    work_dir: Path | None = None,
) -> Evaluation:
    """Compare existing images with a reference.

    Args:
        samples: File, folder, or id on the Hub.
        reference: File, folder, or id on the Hub.
        extractor: Network that gives the features.
        settings: Settings of the metrics.
        options: How to read samples and reference.
        num_images: Number of samples to take from the beginning; None takes all.
        metrics: Names of `METRICS`; None takes all that can be computed.
        num_groups: Number of groups for standard errors, as in `evaluate`.
        work_dir: Folder that keeps the features, so that the same call goes on after a kill.

    Raises:
        ValueError: If an argument does not fit, before any work if that can be known.
    """
    check_metrics(metrics)
    images = open_batches(samples, options)
    check_num_images(images, num_images)
    make = find_reference(reference, options, work_dir)
    network = extractor.open()
    return evaluate(
        images,
        make(network),
        network,
        num_images=num_images,
        metrics=metrics,
        settings=settings,
        num_groups=num_groups,
        work_dir=work_dir,
        sample_settings={"source": samples, **asdict(options)},
    )


def evaluate_model(
    model: str,
    reference: str,
    extractor: ExtractorChoice,
    settings: MetricSettings,
    options: SourceOptions,
    sampling: SamplingOptions,
    *,
    num_images: int | None = None,
    metrics: Sequence[str] | None = None,
    num_groups: int = 1,
    work_dir: Path | None = None,
) -> Evaluation:
    """Compare what a model draws with a reference. With several seeds, the result is the average over them.

    Args:
        model: Folder of a pipeline, or its id on the Hub.
        reference: File, folder, or id on the Hub.
        extractor: Network that gives the features.
        settings: Settings of the metrics.
        options: How to read the reference; `batch_size` is that of drawing too.
        sampling: How to draw.
        num_images: Number of images of each seed. None takes the number of lines of the file of labels.
        metrics: Names of `METRICS`; None takes all that can be computed.
        num_groups: Number of groups for standard errors, as in `evaluate`.
        work_dir: Folder that keeps the features, so that the same call goes on after a kill.

    Raises:
        ValueError: If an argument does not fit, before any work if that can be known.
    """
    check_metrics(metrics)
    pipeline = DiTPipeline.from_pretrained(model, dtype=getattr(torch, sampling.dtype))
    pipeline = pipeline.to(start_inference_accelerator().device)
    arguments: dict[str, Any] = {"labels": sampling.labels, "guidance_scale": sampling.guidance_scale}
    arguments |= {"num_inference_steps": sampling.num_inference_steps, "batch_size": options.batch_size}
    seeds = range(sampling.seed, sampling.seed + sampling.num_seeds)
    drawn = {seed: model_batches(pipeline, num_images, seed=seed, **arguments) for seed in seeds}
    make = find_reference(reference, options, work_dir)
    network = extractor.open()
    real_images = make(network)
    results = [
        evaluate(
            images,
            real_images,
            network,
            metrics=metrics,
            settings=settings,
            num_groups=num_groups,
            work_dir=None if work_dir is None else work_dir / f"seed-{seed}",
            sample_settings={"model": model, **sample_settings},
        )
        for seed, (images, sample_settings) in drawn.items()
    ]
    return average(results)


def write_result(result: Evaluation, output: Path | None, card: Path | None) -> None:
    """Write a result to the files that are named.

    Args:
        result: Result of an evaluation.
        output: File for the result as JSON, or None.
        card: Model card that gets the result as a section and as the Hub's metadata, or None.

    Raises:
        ValueError: If the card does not exist.
    """
    if output is not None:
        result.save(output)
    if card is not None:
        write_results(card, result.metrics, result.spread, result.settings)
