"""Previews: samples of the averaged weights, drawn from the same noise at each step, and written as one picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw
from torch import Tensor

from ...synonyms import lists_synonyms
from .letters import written
from .tolerance import tolerating

logger = get_logger("dit_hf.training")

MAX_IMAGES = 16  # of a preview, if no labels are set
NAME_HEIGHT = 14  # pixels of the line below an image


class PreviewStopped(Exception):
    """The run was asked to stop while it drew a preview."""


class Previews:
    """Draw the previews of a run.

    Args:
        folder: Folder of the pictures.
        labels: Class of each image; the model's first 16 classes if None.
        guidance_scale: Scale of classifier-free guidance; 1 for none, which a model without a null class takes anyway.
        num_inference_steps: Steps of the pipeline's scheduler.
        seed: Seed of the noise.
    """

    def __init__(
        self,
        folder: Path,
        *,
        labels: list[int] | None = None,
        guidance_scale: float = 4.0,
        num_inference_steps: int = 50,
        seed: int = 0,
    ) -> None:
        self.folder, self.labels, self.guidance_scale = folder, labels, guidance_scale
        self.num_inference_steps, self.seed = num_inference_steps, seed

    def classes(self, config: Any) -> list[int]:
        """Return the class of each image.

        Args:
            config: Configuration of the model.
        """
        return self.labels or list(range(min(config.num_classes, MAX_IMAGES)))

    def names(self, pipeline: DiffusionPipeline) -> list[str]:
        """Return what stands below each image: the first name of its class, nothing for a model without names."""
        names = pipeline.config.id2label
        classes = self.classes(pipeline.transformer.config) if names else []
        labels = [names.get(class_id, f"class {class_id}") for class_id in classes]
        return [label.split(",")[0] if lists_synonyms(label) else label for label in labels]

    def draw(self, pipeline: DiffusionPipeline, is_stopped: Callable[[], bool] = lambda: False) -> list[Image.Image]:
        """Draw images of the pipeline's model.

        Raises:
            PreviewStopped: As soon as `is_stopped()` is true.
        """

        def stop_if_asked(
            pipeline: DiffusionPipeline, step: int, timestep: Any, latents: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            if is_stopped():
                raise PreviewStopped
            return latents

        config = pipeline.transformer.config
        subjects = {"class_labels": self.classes(config)} if config.num_classes else {"num_images": MAX_IMAGES}
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            **subjects,
            guidance_scale=self.guidance_scale if config.has_null_class else 1,
            num_inference_steps=self.num_inference_steps,
            generator=torch.Generator(pipeline.device).manual_seed(self.seed),
            callback_on_step_end=stop_if_asked,
        ).images

    def draw_and_save(
        self, pipeline: DiffusionPipeline, step: int, is_stopped: Callable[[], bool]
    ) -> list[Image.Image] | None:
        """Draw the preview of a step and write it; None if the run was asked to stop or a latent was not finite."""
        try:
            images = self.draw(pipeline, is_stopped)
        except PreviewStopped:
            logger.info(f"no preview of step {step}: the run was asked to stop")
            return None
        except FloatingPointError as error:
            logger.error(f"no preview of step {step}: {error}. The training goes on")
            return None
        with tolerating(f"preview of step {step}"):
            save_grid(images, self.folder / f"step-{step:08d}.png", self.names(pipeline))
        return images


def save_grid(images: list[Image.Image], path: Path, names: Sequence[str] = ()) -> None:
    """Write images as one picture, with the name of each below it if there are names."""
    path.parent.mkdir(exist_ok=True)
    make_grid([named(*pair) for pair in zip(images, names, strict=True)] if names else images).save(path)


def named(image: Image.Image, name: str) -> Image.Image:
    """Return an image with a name below it, cut where the image ends."""
    canvas = Image.new("RGB", (image.width, image.height + NAME_HEIGHT), "white")
    canvas.paste(image)
    text, font = written(name, NAME_HEIGHT - 4)
    ImageDraw.Draw(canvas).text((1, image.height), text, fill="black", font=font)
    return canvas


def make_grid(images: list[Image.Image]) -> Image.Image:
    """Put images into one picture, as near to a square as their number allows."""
    rows = next(rows for rows in range(int(len(images) ** 0.5), 0, -1) if len(images) % rows == 0)
    return make_image_grid(images, rows=rows, cols=len(images) // rows)
