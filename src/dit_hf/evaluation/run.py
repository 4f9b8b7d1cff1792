"""The work of `dit-hf evaluate`: opens images, reference and extractor by name, and puts them together.

This is the one file of this room that imports other rooms.
"""

import json
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from ..cards.results import write_results
from ..data.preparation import resize_and_crop
from ..data.sources import open_images
from ..distributed import start_inference_accelerator
from ..generation.batches import iterate_batches
from ..generation.from_pipeline import choose_labels, pipeline_sampler, pipeline_settings
from ..image_folder import list_images
from ..images import BadImage, decode_image
from ..pipeline_dit import DiTPipeline
from .evaluate import evaluate
from .features.adm import npz_batches
from .features.extractors import DINOV2, DINOv2Extractor, Extractor, InceptionExtractor
from .features.folder import folder_batches
from .features.images import BATCH_SIZE, Batch, ImageBatches, check_batch, row_batches
from .features.reference import Reference, load_reference, make_reference
from .metric_table import MetricSettings, check_metrics
from .result import Evaluation, average

DATA_SET_SUFFIXES = {".parquet", ".arrow", ".tar"}


@dataclass(frozen=True)
class SourceOptions:
    """How images are read that exist already.

    Attributes:
        batch_size: Number of images of a batch.
        resolution: Side in pixels to crop images to, as the references of ImageNet were made. None leaves images as
            they are.
        split: Split of a data set.
        image_column: Column of a data set that holds the image.
        label_column: Column of a data set that holds the class.
    """

    batch_size: int = BATCH_SIZE
    resolution: int | None = None
    split: str = "train"
    image_column: str = "image"
    label_column: str = "label"


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


def open_extractor(name: str, weights: str | None = None) -> Extractor:
    """Return an extractor on the device of this process.

    Args:
        name: `inception`, `dinov2`, or a class in a file of yours, such as `my_network.py:MyNetwork`. The class is
            called without arguments, or with `weights` if they are given.
        weights: File of the Inception network's weights, or folder or id of a DINOv2 model. None downloads them.

    Raises:
        ValueError: If the name is unknown.
    """
    device = start_inference_accelerator().device
    if name == "inception":
        return InceptionExtractor.from_file(weights, device)
    if name == "dinov2":
        return DINOv2Extractor(weights or DINOV2, device)
    file, _, class_name = name.rpartition(":")
    if not file.endswith(".py"):
        raise ValueError(f"extractor {name!r} is unknown: choose inception, dinov2, or a class as my_network.py:Name")
    members = runpy.run_path(file)
    if class_name not in members:
        raise ValueError(f"{file} has no {class_name!r}: name a class with the members of dit_hf.evaluation.Extractor")
    return members[class_name](*([weights] if weights else []))


def open_source(source: str, options: SourceOptions | None = None) -> Iterable[Batch]:
    """Return the images of an `.npz` in ADM's form, of a folder, or of a data set that is streamed.

    Args:
        source: File, folder, or id on the Hub.
        options: How to read the images. Default: `SourceOptions()`.

    Raises:
        ValueError: If the source cannot be read, or if it is an `.npz` with images of another size than the resolution.
    """
    options = options or SourceOptions()
    resolution = options.resolution

    def prepare(image: Image.Image) -> Image.Image:
        return image if resolution is None else resize_and_crop(image, resolution)

    if source.endswith(".npz"):
        batches = npz_batches(source, options.batch_size)
        if resolution is not None and (size := check_batch(batches[0])[0].shape[1:3]) != (resolution, resolution):
            raise ValueError(f"{source} holds images of {size}, which are not cropped: leave out {resolution=}")
        return batches
    if Path(source).is_dir() and _is_folder_of_images(source):
        return folder_batches(source, options.batch_size, prepare)
    rows = _decode_rows(source, options)
    return row_batches(rows, batch_size=options.batch_size, prepare=prepare, label_column="label")


def _is_folder_of_images(folder: str) -> bool:
    """Return whether a folder holds image files, and no files that hold images of a data set."""
    listed = list_images(folder)
    return bool(listed.names) and not any(suffix in DATA_SET_SUFFIXES for suffix in listed.left_out)


def _decode_rows(source: str, options: SourceOptions) -> Iterator[Mapping[str, Any]]:
    data = open_images(source, options.split, options.image_column, options.label_column)
    for part in range(data.num_parts):
        for rows in data.read_part(part):
            for row, label in enumerate(rows.labels):
                try:
                    yield {"image": decode_image(rows.read(row)), "label": label}
                except BadImage as error:
                    raise BadImage(f"{rows.key(row)}: {error}") from error


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


def open_reference(
    reference: str, extractor: Extractor, options: SourceOptions, work_dir: Path | None = None
) -> Reference:
    """Return the reference of a file `.npz` with statistics or images, or of anything that `open_source` takes.

    Args:
        reference: File, folder, or id on the Hub.
        extractor: Network that gives the features.
        options: How to read the images.
        work_dir: Folder in whose folder `reference` the features are kept.

    Raises:
        ValueError: If the reference cannot be read, or if it was made with another extractor.
    """
    folder = None if work_dir is None else work_dir / "reference"
    if reference.endswith(".npz"):
        return load_reference(reference, extractor, folder)
    return make_reference(open_source(reference, options), extractor, reference, folder)


def save_statistics(
    samples: str,
    path: Path,
    extractor: Extractor,
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
    statistics = make_reference(open_source(samples, options), extractor, samples, work_dir, num_images)
    if start_inference_accelerator().is_main_process:
        statistics.save(path)


def evaluate_source(
    samples: str,
    reference: str,
    extractor: Extractor,
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
    images = open_source(samples, options)  # its errors come before the work on the reference
    return evaluate(
        images,
        open_reference(reference, extractor, options, work_dir),
        extractor,
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
    extractor: Extractor,
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
    real_images = open_reference(reference, extractor, options, work_dir)
    results = [
        evaluate(
            images,
            real_images,
            extractor,
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
