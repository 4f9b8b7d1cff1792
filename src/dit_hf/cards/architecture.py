"""What every card states of a model: the architecture as a table, and a class to draw as an example."""

import json
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from ..analysis import count_gmacs, count_parameters
from ..configuration_dit import DiTConfig


def architecture(config: DiTConfig) -> dict[str, Any]:
    """Return the rows of the table, by names that people understand.

    Parameters are counted from the configuration, the position embedding included, so that what an adapter adds to a
    model is not counted.

    Args:
        config: Configuration of the model.
    """
    height, width = config.sample_height_width
    return {
        "size": config.paper_size or "none of the paper's",
        "conditioning of the blocks": config.block_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "patch size": config.patch_size,
        "latents (channels, height, width)": f"{config.in_channels}, {height}, {width}",
        "classes": config.num_classes or "none",
        "parameters": f"{count_parameters(config):,}",
        "multiply-adds of a forward": f"{count_gmacs(config):.2f} * 10^9",
        "variance": "learned" if config.learn_sigma else "fixed",
    }


def architecture_of(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Return the rows of the table for a pipeline: those of its model, its scheduler and its guidance."""
    steps = (pipeline.config.get("num_inference_steps") or {}).get(type(pipeline.scheduler).__name__)
    stated = {
        "guidance of a call that names none": pipeline.config.get("guidance_scale"),
        "steps of a call that names none": steps,
    }
    return {
        **architecture(pipeline.transformer.config),
        "scheduler": type(pipeline.scheduler).__name__,
        "channels that guidance moves": pipeline.config.guidance_channels,
        **{name: value for name, value in stated.items() if value is not None},
    }


def summary(config: DiTConfig) -> str:
    """Say what a model generates, without a period: "images of 1000 classes from 32 x 32 latents"."""
    height, width = config.sample_height_width
    subject = f"{config.num_classes} classes" if config.num_classes else "no classes (unconditional)"
    return f"images of {subject} from {height} x {width} latents"


def example_call(config: DiTConfig, labels: Mapping[str, int]) -> str:
    """Return arguments for a snippet that draws an image of one class.

    Args:
        config: Configuration of the model.
        labels: Names that stand for one class only -> the id of the class, as `DiTPipeline.labels`.
    """
    if not config.num_classes:
        return "num_images=1, guidance_scale=1"
    return f"class_labels=[{example_label(config.num_classes, labels)}]" + (
        "" if config.has_null_class else ", guidance_scale=1"
    )


def example_label(num_classes: int, labels: Mapping[str, int]) -> str:
    """Return the name, in quotes, of the class in the middle; the id if that class has no name of its own."""
    middle = num_classes // 2
    names = [name for name, class_id in labels.items() if class_id == middle]
    return json.dumps(names[0], ensure_ascii=False) if names else str(middle)
