"""Between two images: from noise to noise on the great circle, from class to class by a mix of their embeddings."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def slerp(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Return points (K, ...) on the great circle between two noises; on a straight line they would be too short.

    Args:
        start: Noise, of any shape.
        end: Noise of the same shape.
        fractions: Places (K,) on the way, in [0, 1].
    """
    angle = torch.acos(torch.cosine_similarity(start.flatten(), end.flatten(), dim=0))
    fractions = fractions.reshape(-1, *[1] * start.ndim)
    return (torch.sin((1 - fractions) * angle) * start + torch.sin(fractions * angle) * end) / torch.sin(angle)


def _with_embeddings(model: Any, rows: Tensor) -> Any:
    """Return a model that shares all weights but has these embeddings (K, D) in place of its first K classes."""
    model, embedder = copy.copy(model), copy.copy(model.y_embedder)
    table = copy.deepcopy(embedder.embedding_table)
    table.weight[: len(rows)] = rows
    embedder._modules = {**embedder._modules, "embedding_table": table}
    model._modules = {**model._modules, "y_embedder": embedder}
    return model


@torch.no_grad()
def interpolate(
    pipeline: Any, labels: Sequence[str | int], num_frames: int, seeds: Sequence[int], **arguments: Any
) -> list[Image.Image]:
    """Draw images on the way from one class and noise to another; the first and the last are those of the ends.

    Sample with a scheduler that draws no noise, such as DDIM: then a small step on the way is a small step between the
    images.

    Args:
        pipeline: `DiTPipeline` with classes.
        labels: Ids or names of two classes.
        num_frames: Number of images, both ends included, from 2 to the number of classes.
        seeds: Seeds of the two noises.
        **arguments: Other arguments of the pipeline, such as `guidance_scale`.

    Raises:
        ValueError: If a number or a label is outside its limits.
    """
    config = pipeline.transformer.config
    if not 2 <= num_frames <= config.num_classes:
        raise ValueError(f"num_frames={num_frames}: pass 2..{config.num_classes}")
    shape = (config.in_channels, *config.sample_height_width)
    start, end = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    fractions = torch.linspace(0, 1, num_frames)
    ids = [label if isinstance(label, int) else pipeline.get_label_ids(label)[0] for label in labels]
    rows = pipeline.transformer.y_embedder.embedding_table.weight[ids]  # (2, D)
    mixed = torch.lerp(rows[0], rows[1], fractions[:, None].to(rows))  # (K, D)
    walking = type(pipeline).from_pipe(pipeline, transformer=_with_embeddings(pipeline.transformer, mixed))
    walking.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    latents = slerp(start, end, fractions).to(rows.device)  # (K, C, H, W)
    return walking([*range(num_frames)], latents=latents, **arguments).images
