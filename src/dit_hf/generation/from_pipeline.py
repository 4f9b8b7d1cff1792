"""A pipeline as the sampler that `generate` takes, its settings as JSON, and the labels that a user names."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.features.extractors import weights_sha256
from .generate import Sampler, draw_labels, generate_images, start_inference_accelerator


def pipeline_sampler(pipeline: Any, **arguments: Any) -> Sampler:
    """Let a pipeline draw batches.

    Args:
        pipeline: a `DiTPipeline`; its progress bar is switched off.
        **arguments: for each call, such as `guidance_scale`.

    Returns:
        A function from labels and generators to uint8 (B, H, W, 3): 255 times the image, rounded to nearest.
    """
    pipeline.set_progress_bar_config(disable=True)

    def sample(labels: list[int] | None, generators: list[torch.Generator]) -> np.ndarray:
        # without classes the number of images has to be said, with classes the labels say it
        count = {"num_images": len(generators)} if labels is None else {"class_labels": labels}
        images = pipeline(**count, generator=generators, output_type="np", **arguments).images  # (B, H, W, 3) in [0, 1]
        return (images * 255).round().astype(np.uint8)

    return sample


def pipeline_settings(pipeline: Any, **arguments: Any) -> dict[str, Any]:
    """All that a pipeline's images depend on, besides seed and labels, as JSON can hold it."""
    config = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    config = {name: str(value) if value in (math.inf, -math.inf) else value for name, value in config.items()}
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
    """Turn what a user asks for into a class for each image, None without classes, and the number of images.

    Args:
        pipeline: knows the classes.
        labels: "random", "balanced", or a text file with an id or a name on each line; None is "random" with classes.
        num_images: how many; None is as many as the file has lines.
        seed: of the random ones.

    Raises:
        ValueError: for a label that is none, or for numbers that do not fit.
    """
    num_classes = pipeline.transformer.config.num_classes
    if not num_classes and labels is not None:
        raise ValueError(f"labels={labels!r}: the model is unconditional, leave the labels out")
    if labels not in (None, "random", "balanced"):
        return _read_labels(pipeline, Path(labels), num_images)
    if num_images is None:
        raise ValueError("num_images is missing: say how many images to draw, or give a file of labels")
    if num_images < 1:
        raise ValueError(f"num_images={num_images}: pass a whole number of at least 1")
    return (draw_labels(labels or "random", num_images, num_classes, seed) if num_classes else None), num_images


def _read_labels(pipeline: Any, file: Path, num_images: int | None) -> tuple[list[int], int]:
    if not file.is_file():
        raise ValueError(
            f"labels={str(file)!r}: choose from random, balanced, or a text file with a label on each line"
        )
    num_classes = pipeline.transformer.config.num_classes
    ids: list[int] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        label = line.strip()
        try:
            ids += [int(label)] if label.isdecimal() else pipeline.get_label_ids(label)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        if not 0 <= ids[-1] < num_classes:
            raise ValueError(f"{file}, line {number}: label {label} is outside 0..{num_classes - 1}")
    if not ids or num_images not in (None, len(ids)):
        raise ValueError(f"{file} has {len(ids)} labels for num_images={num_images}: it must have one for each image")
    return ids, len(ids)


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
    """Draw many images with a pipeline, which each process moves to its device; see `generate_images`.

    Args:
        pipeline: a `DiTPipeline`.
        output: a new folder, or a file that ends in `.npz`.
        num_images: how many; None is as many as the file of labels has lines.
        labels: "random", "balanced", or a text file with an id or a name on each line.
        seed: of all images.
        batch_size: on each process.
        **arguments: for each call of the pipeline, such as `guidance_scale`.

    Raises:
        ValueError: for an argument outside its limits, or when the output was begun with other settings.
    """
    ids, num_images = choose_labels(pipeline, labels, num_images, seed)
    settings = {"labels": labels or ("random" if ids else None), **pipeline_settings(pipeline, **arguments)}
    accelerator = start_inference_accelerator()
    sample = pipeline_sampler(pipeline.to(accelerator.device), **arguments)
    options: dict[str, Any] = {"labels": ids, "seed": seed, "batch_size": batch_size, "settings": settings}
    return generate_images(sample, output, num_images, accelerator=accelerator, **options)
