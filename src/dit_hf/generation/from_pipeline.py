"""Many images from a `DiTPipeline`: the pipeline as a sampler, its settings as JSON, and the labels a user asks for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..distributed import start_inference_accelerator
from ..provenance import weights_sha256
from ..sampling.class_names import warn_of_null_class
from ..sampling.defaults import usual_guidance_scale, usual_num_steps
from .batches import Sampler
from .draws import draw_labels
from .generate import generate_images


def pipeline_sampler(pipeline: Any, **arguments: Any) -> Sampler:
    """Return the function that draws batches with a pipeline.

    Args:
        pipeline: `DiTPipeline`. Its progress bar is switched off.
        **arguments: Arguments of each call of the pipeline, such as `guidance_scale`.

    Returns:
        Function from labels and generators to uint8 (B, H, W, 3): 255 times the image, rounded to nearest.
    """
    pipeline.set_progress_bar_config(disable=True)

    def sample(labels: list[int] | None, generators: list[torch.Generator]) -> np.ndarray:
        # An unconditional pipeline needs the number of images; with classes the labels imply it.
        count = {"num_images": len(generators)} if labels is None else {"class_labels": labels}
        images = pipeline(**count, generator=generators, output_type="np", **arguments).images  # (B, H, W, 3) in [0, 1]
        return (images * 255).round().astype(np.uint8)

    return sample


def pipeline_settings(pipeline: Any, **arguments: Any) -> dict[str, Any]:
    """Return all that a pipeline's images depend on besides seed and labels, as JSON can hold it.

    What the call leaves to the pipeline is filled in: its guidance, and its number of steps.

    Args:
        pipeline: `DiTPipeline`.
        **arguments: Arguments of each call of the pipeline, such as `guidance_scale`.
    """
    config = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    config = {name: str(value) if value in (math.inf, -math.inf) else value for name, value in config.items()}
    if arguments.get("guidance_scale") is None:
        arguments = {**arguments, "guidance_scale": usual_guidance_scale(pipeline)}
    if all(arguments.get(name) is None for name in ("num_inference_steps", "timesteps", "sigmas")):
        arguments["num_inference_steps"] = usual_num_steps(pipeline)
    return {
        "pipeline": type(pipeline).__name__,
        "weights_sha256": weights_sha256(pipeline.transformer, pipeline.vae),
        "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
        "guidance_channels": pipeline.config.guidance_channels,
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": config,
        "rounding": "nearest",
        **arguments,
    }


def choose_labels(pipeline: Any, labels: str | None, num_images: int | None, seed: int) -> tuple[list[int] | None, int]:
    """Return the class of each image, or None without classes, and the number of images.

    Args:
        pipeline: `DiTPipeline`, which knows the classes.
        labels: `random`, `balanced`, or a text file with a class id or name on each line. None is `random` if the model
            has classes.
        num_images: Number of images. None takes the number of lines of the file.
        seed: Seed of random labels.

    Raises:
        ValueError: If the labels or the number of images do not fit the model or each other.
    """
    num_classes = pipeline.transformer.config.num_classes
    if not num_classes and labels is not None:
        raise ValueError(f"labels={labels!r}: the model is unconditional, leave the labels out")
    if labels not in (None, "random", "balanced"):
        ids = _read_labels(pipeline, Path(labels))
        if num_images not in (None, len(ids)):
            raise ValueError(f"{labels} has {len(ids)} labels for num_images={num_images}: give one for each image")
        return ids, len(ids)
    if num_images is None:
        raise ValueError("num_images is missing: give the number of images to draw, or a file of labels")
    if num_images < 1:
        raise ValueError(f"num_images={num_images}: pass a whole number of at least 1")
    return (draw_labels(labels or "random", num_images, num_classes, seed) if num_classes else None), num_images


def _read_labels(pipeline: Any, file: Path) -> list[int]:
    if not file.is_file():
        raise ValueError(
            f"labels={str(file)!r}: choose from random, balanced, or a text file with a label on each line"
        )
    config = pipeline.transformer.config
    ids: list[int] = []
    for number, label in _read_lines(file):
        try:
            # digits that name a class are a name, as in the option --class-labels
            is_id = label.isdecimal() and label not in pipeline.labels
            ids += [int(label)] if is_id else pipeline.get_label_ids(label)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        if not 0 <= ids[-1] < config.num_classes + config.has_null_class:
            null = f", or {config.num_classes} for no class" if config.has_null_class else ""
            raise ValueError(f"{file}, line {number}: label {label} is outside 0..{config.num_classes - 1}{null}")
    if not ids:
        raise ValueError(f"{file} has no labels: write a class id or name on each line")
    warn_of_null_class(ids, config.num_classes)
    return ids


def _read_lines(file: Path) -> list[tuple[int, str]]:
    """Return the number and the text of each line that is not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}): save it in that encoding") from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def generate_with_pipeline(
    pipeline: Any,
    output: str | Path,
    num_images: int | None = None,
    *,
    labels: str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    **arguments: Any,
) -> Path:
    """Draw many images with a pipeline, which each process moves to its own device; see `generate_images`.

    Args:
        pipeline: `DiTPipeline`.
        output: New folder, or file that ends in `.npz`.
        num_images: Number of images. None takes the number of lines of the file of labels.
        labels: `random`, `balanced`, or a text file with a class id or name on each line. None is `random` if the model
            has classes.
        seed: Seed of the noise and of random labels.
        batch_size: Number of images that each process draws at once.
        **arguments: Arguments of each call of the pipeline, such as `guidance_scale`.

    Returns:
        The folder or file.

    Raises:
        ValueError: If an argument is outside its limits, or if the output was begun with other settings.
    """
    ids, num_images = choose_labels(pipeline, labels, num_images, seed)
    settings = {"labels": labels or ("random" if ids else None), **pipeline_settings(pipeline, **arguments)}
    accelerator = start_inference_accelerator()
    sample = pipeline_sampler(pipeline.to(accelerator.device), **arguments)
    options: dict[str, Any] = {"labels": ids, "seed": seed, "batch_size": batch_size, "settings": settings}
    return generate_images(sample, output, num_images, accelerator=accelerator, **options)
