"""`dit-hf evaluate`: puts images, reference and extractor together; the one file of this room that knows the others."""

import json
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from PIL import Image

from ..cards.results import write_results
from ..data.preparation import resize_and_crop
from ..data.sources import open_images
from ..generation.from_pipeline import choose_labels, pipeline_sampler, pipeline_settings
from ..generation.generate import iterate_batches, start_inference_accelerator
from ..images import decode_image
from ..pipeline_dit import DiTPipeline
from .evaluate import Evaluation, MetricSettings, average, check_metrics, evaluate
from .features.adm import npz_batches
from .features.extractors import DINOV2, DINOv2Extractor, Extractor, InceptionExtractor
from .features.images import BATCH_SIZE, SUFFIXES, Batch, ImageBatches, check_batch, folder_batches, row_batches
from .features.reference import Reference, load_reference, make_reference


def open_extractor(name: str, weights: str | None = None) -> tuple[Accelerator, Extractor]:
    """The processes of the launcher, and an extractor on this one's device.

    Args:
        name: "inception", "dinov2", or a class in a file of yours, as "my_network.py:MyNetwork"; it is called without
            arguments, or with `weights` where they are given.
        weights: the file of Inception's, the folder or id of DINOv2's.

    Raises:
        ValueError: for another name.
    """
    accelerator = start_inference_accelerator()
    if name == "inception":
        return accelerator, InceptionExtractor.from_file(weights, accelerator.device)
    if name == "dinov2":
        return accelerator, DINOv2Extractor(weights or DINOV2, accelerator.device)
    file, _, class_name = name.rpartition(":")
    if not file.endswith(".py"):
        raise ValueError(f"extractor {name!r} is unknown: choose inception, dinov2, or a class as my_network.py:Name")
    members = runpy.run_path(file)
    if class_name not in members:
        raise ValueError(f"{file} has no {class_name!r}: name a class with the members of dit_hf.evaluation.Extractor")
    return accelerator, members[class_name](*([weights] if weights else []))


def open_source(
    source: str,
    *,
    batch_size: int = BATCH_SIZE,
    resolution: int | None = None,
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
) -> Iterable[Batch]:
    """Images from an `.npz` in ADM's form, a folder of images, or a data set that is streamed.

    Args:
        source: a file, a folder, or an id on the Hub.
        batch_size: images of a batch.
        resolution: side to crop to, as ImageNet's references were made; None leaves images as they are. Those of an
            `.npz` have to have it.
        split: of a data set.
        image_column: of a data set.
        label_column: of a data set.

    Raises:
        ValueError: if the source cannot be read.
    """

    def prepare(image: Image.Image) -> Image.Image:
        return image if resolution is None else resize_and_crop(image, resolution)

    if source.endswith(".npz"):
        batches = npz_batches(source, batch_size)
        if resolution is not None and (size := check_batch(batches[0])[0].shape[1:3]) != (resolution, resolution):
            raise ValueError(f"{source} holds images of {size}, which are not cropped: leave out {resolution=}")
        return batches
    if Path(source).is_dir() and any(path.suffix.lower() in SUFFIXES for path in Path(source).rglob("*")):
        return folder_batches(source, batch_size, prepare)

    def decoded() -> Iterator[Mapping[str, Any]]:
        opened = open_images(source, split, image_column, label_column)
        for part in range(opened.num_parts):
            for rows in opened.read_part(part):
                for row, label in enumerate(rows.labels):
                    yield {"image": decode_image(rows.read(row)), "label": label}

    return row_batches(decoded(), batch_size=batch_size, prepare=prepare, label_column="label")


def model_batches(
    pipeline: Any,
    num_images: int | None,
    *,
    labels: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    **call: Any,
) -> tuple[ImageBatches, dict[str, Any]]:
    """Images that a pipeline draws when they are asked for, and all that they depend on.

    Args:
        pipeline: a `DiTPipeline` on its device.
        num_images: how many; None is as many as the file of labels has lines.
        labels: "random", "balanced", or a file with a label on each line; None is "random" with classes.
        seed: of noise and random labels.
        batch_size: images at once.
        **call: for each call of the pipeline, such as `guidance_scale`.
    """
    ids, number = choose_labels(pipeline, labels, num_images, seed)
    about = {"label_scheme": labels or ("random" if ids else None), "seed": seed, "batch_size": batch_size}
    about |= pipeline_settings(pipeline, **call)
    about |= {"latents": pipeline.transformer.config.in_channels, "diffusers": diffusers.__version__}
    about |= {"vae": None if pipeline.vae is None else pipeline.vae.config.get("_name_or_path"), "num_images": number}
    about |= {"transformers": transformers.__version__}
    sample = pipeline_sampler(pipeline, **call)

    def read(start: int, stop: int) -> Batch:
        batches = [start // batch_size]
        [images] = iterate_batches(sample, number, labels=ids, seed=seed, batch_size=batch_size, batches=batches)
        return images if ids is None else (images, np.array(ids[start:stop]))

    return ImageBatches(number, batch_size, read, source=json.dumps(about, default=str), is_costly=True), about


def open_reference(
    reference: str, extractor: Extractor, work_dir: Path | None, of_sources: Mapping[str, Any]
) -> Reference:
    """What to compare with: an `.npz` of statistics or images, or what `open_source` takes."""
    folder = None if work_dir is None else work_dir / "reference"
    if reference.endswith(".npz"):
        return load_reference(reference, extractor, folder)
    return make_reference(open_source(reference, **of_sources), extractor, reference, folder)


def save_statistics(
    samples: str,
    path: Path,
    extractor: Extractor,
    num_images: int | None,
    work_dir: Path | None,
    of_sources: Mapping[str, Any],
) -> None:
    """Write the statistics of images, to compare with them later; the arguments are those of `dit-hf evaluate`."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a file of statistics must end in .npz")
    made = make_reference(open_source(samples, **of_sources), extractor, samples, work_dir, num_images)
    if start_inference_accelerator().is_main_process:
        made.save(path)


def evaluate_source(
    samples: str,
    reference: str,
    extractor: Extractor,
    settings: Mapping[str, Any],
    of_sources: Mapping[str, Any],
    *,
    metrics: Sequence[str] | None,
    work_dir: Path | None,
    **how: Any,
) -> Evaluation:
    """Compare images with a reference; the arguments are those of `dit-hf evaluate`."""
    check_metrics(metrics)
    images = open_source(samples, **of_sources)  # its errors come before the work on the reference
    against = open_reference(reference, extractor, work_dir, of_sources)
    about = {"source": samples, **of_sources}
    how |= {"metrics": metrics, "work_dir": work_dir, "about": about}
    return evaluate(images, against, extractor, settings=MetricSettings(**settings), **how)


def evaluate_model(
    model: str,
    reference: str,
    extractor: Extractor,
    settings: Mapping[str, Any],
    of_sources: Mapping[str, Any],
    of_model: Mapping[str, Any],
    *,
    num_images: int | None,
    metrics: Sequence[str] | None,
    work_dir: Path | None,
    **how: Any,
) -> Evaluation:
    """Compare what a model draws with a reference; the arguments are those of `dit-hf evaluate`.

    With several seeds, all samples are drawn anew for each, and the result is the average.
    """
    check_metrics(metrics)
    call = {"guidance_scale": 1.0, **of_model}
    first, num_seeds = call.pop("seed", 0), call.pop("num_seeds", 1)
    pipeline = DiTPipeline.from_pretrained(model, dtype=getattr(torch, call.pop("dtype", "float32")))
    pipeline = pipeline.to(start_inference_accelerator().device)
    options = {"batch_size": of_sources["batch_size"], **call}
    drawn = [model_batches(pipeline, num_images, seed=seed, **options) for seed in range(first, first + num_seeds)]
    against = open_reference(reference, extractor, work_dir, of_sources)
    results = []
    for images, about in drawn:
        folder = None if work_dir is None else work_dir / f"seed-{about['seed']}"
        about = {"model": model, **about}
        arguments = {"metrics": metrics, "work_dir": folder, "about": about, **how}
        results.append(evaluate(images, against, extractor, settings=MetricSettings(**settings), **arguments))
    return average(results)


def write(result: Evaluation, output: Path | None, card: Path | None) -> None:
    """Write a result as JSON and into a model card, where these are named."""
    if output is not None:
        result.save(output)
    if card is not None:
        write_results(card, result.metrics, result.spread, result.settings)
