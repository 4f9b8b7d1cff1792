"""Pipelines that begin with an image: image to image, its inversion to noise, and inpainting."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, ImagePipelineOutput
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from .betas import BETA_FIELDS
from .pipeline_dit import DiTPipeline
from .sampling.class_names import label_batch
from .sampling.latents import latent_size
from .sampling.schedulers import FLOW_PREDICTIONS
from .sampling.sources import SourceImage


class DiTImg2ImgPipeline(DiTPipeline):
    """Image to image: add noise to an image, and denoise it as another class, or the same (SDEdit, Meng et al. 2022).

    The pipeline takes the parts of `DiTPipeline`; `DiTImg2ImgPipeline.from_pipe(pipeline)` shares them.
    """

    def __call__(
        self,
        image: PipelineImageInput,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        strength: float = 0.6,
        **arguments: Any,
    ) -> ImagePipelineOutput | tuple:
        """Change images.

        Args:
            image: One image, or one per image to make; resized to the size that is made.
            class_labels: As in `DiTPipeline`.
            strength: Share of the steps to take, in (0, 1]; at 1 little of the image remains.
            **arguments: Other arguments of `DiTPipeline`; `latents` is the noise that is added.

        Raises:
            ValueError: As in `DiTPipeline`.
            FloatingPointError: As in `DiTPipeline`.
        """
        return super().__call__(class_labels, _source=SourceImage(image, strength), **arguments)

    @torch.no_grad()
    def invert(
        self,
        image: PipelineImageInput,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int = 100,
        **arguments: Any,
    ) -> Tensor:
        """Find the noise (B, C, H, W) from which DDIM makes an image again (Song et al. 2021, section 4.3).

        Args:
            image: One image, or one per label.
            class_labels: What the images show.
            num_inference_steps: Number of steps; the more, the smaller the error. Pass the same number to make the
                image again.
            **arguments: Other arguments of `DiTPipeline`; guided only if guidance_scale is given.

        Raises:
            ValueError: As in `DiTPipeline`, or if the model was trained by flow matching.
        """
        if self.config.prediction_type in FLOW_PREDICTIONS:
            name = type(self.scheduler).__name__
            raise ValueError(
                f"{name} samples a model of flow matching without betas: DDIM inverts models with betas only"
            )
        kept = (*BETA_FIELDS, "num_train_timesteps", "prediction_type")
        config = {name: self.scheduler.config.get(name) for name in kept}
        config["set_alpha_to_one"] = config["prediction_type"] != "sample"  # x_0 without noise says nothing of eps
        scheduler = DDIMInverseScheduler(**config, timestep_spacing="leading", clip_sample=False)
        inverse = DiTPipeline.from_pipe(self, scheduler=scheduler)
        inverse.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        model = self.transformer.config
        numbers = arguments.get("num_images_per_label", 1), arguments.get("num_images")
        labels = label_batch(class_labels, *numbers, model, self.config.id2label or {})
        size = latent_size(model, self.vae_scale_factor, arguments.get("height"), arguments.get("width"))
        shape = (len(labels), model.in_channels, *size)
        latents = self._encode_source(SourceImage(image, 1.0), shape).latents.expand(shape)  # (B, C, H, W)
        arguments = {"num_inference_steps": num_inference_steps, "guidance_scale": 1.0, **arguments}
        return inverse(class_labels, latents=latents, output_type="latent", **arguments).images


class DiTInpaintPipeline(DiTPipeline):
    """Inpainting: draw a masked part of an image anew; every other pixel stays what it was, to the byte.

    What is known is put back after each step (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, without resampling). The
    pipeline takes the parts of `DiTPipeline`; `DiTInpaintPipeline.from_pipe(pipeline)` shares them.
    """

    def __call__(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        strength: float = 1.0,
        **arguments: Any,
    ) -> ImagePipelineOutput | tuple:
        """Draw the masked part of images.

        Args:
            image: One image, or one per image to make; resized to the size that is made.
            mask_image: Mask, white (from 0.5 up) where something new is drawn; one, or one per image.
            class_labels: As in `DiTPipeline`.
            strength: Share of the steps to take, in (0, 1]; below 1 what was under the mask shines through.
            **arguments: Other arguments of `DiTPipeline`; with output_type="latent" nothing is composited.

        Raises:
            ValueError: As in `DiTPipeline`.
            FloatingPointError: As in `DiTPipeline`.
        """
        return super().__call__(class_labels, _source=SourceImage(image, strength, mask_image), **arguments)
