"""Blocks for Modular Diffusers: labels, latents, the denoising loop, decoding; together what `DiTPipeline` does.

A block can be replaced, left out, or put into a pipeline of other blocks. Legend: B images, C latent channels, H and W
latent height and width, N steps.
"""

import functools
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders import AutoencoderKL
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)

from .modeling_dit import DiTModel
from .pipeline_dit import DiTPipeline
from .sampling.class_names import label_batch
from .sampling.defaults import PIPELINE_SETTINGS, usual_guidance_scale, usual_num_steps
from .sampling.denoising import Denoising
from .sampling.guidance import Guidance
from .sampling.latents import check_noise, decode_latents, draw_noise, latent_size, resized_positions
from .sampling.schedulers import check_scheduler, noise_levels, set_timesteps, step_arguments
from .sampling.sources import first_latents
from .vae import vae_shrink_factor

TRANSFORMER = ComponentSpec("transformer", DiTModel)
SCHEDULER = ComponentSpec("scheduler", DPMSolverMultistepScheduler)
VAE = ComponentSpec("vae", AutoencoderKL)
LABELS = InputParam("labels", type_hint=list, required=True, description="Class id of each image, or None for each.")
GENERATOR = InputParam("generator", description="Generator of all noise, or one per image.")


class _Block(ModularPipelineBlocks):
    """A block whose properties are attributes of its class."""

    parts: tuple[ComponentSpec, ...] = ()
    settings: tuple[str, ...] = ()
    takes: tuple[InputParam, ...] = ()
    gives: tuple[OutputParam, ...] = ()

    @property
    def description(self) -> str:
        return (type(self).__doc__ or "").strip()

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return list(self.parts)

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec(name, None) for name in self.settings]

    @property
    def inputs(self) -> list[InputParam]:
        return list(self.takes)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return list(self.gives)

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the block on the state of a call."""
        block_state = self.get_block_state(state)
        self.run(components, block_state)
        self.set_block_state(state, block_state)
        return components, state

    def run(self, components: Any, block: Any) -> None:
        """Read the inputs of the block from `block`, and set its outputs there."""
        raise NotImplementedError


class DiTLabelsStep(_Block):
    """Turn ids and names of classes into the class id of each image."""

    parts = (TRANSFORMER,)
    settings = ("id2label",)
    takes = (
        InputParam("class_labels", description="Id or name of a class, or a list of them."),
        InputParam("num_images_per_label", type_hint=int, default=1, description="Number of images of each label."),
        InputParam("num_images", type_hint=int, description="Number of images of an unconditional model."),
    )
    gives = (OutputParam("labels", type_hint=list, description="Class id of each image, or None for each."),)

    def run(self, components: Any, block: Any) -> None:
        config, names = components.transformer.config, components.config.get("id2label") or {}
        names = {int(class_id): name for class_id, name in names.items()}  # JSON turns ids into text
        block.labels = label_batch(block.class_labels, block.num_images_per_label, block.num_images, config, names)


class DiTLatentsStep(_Block):
    """Set the timesteps of the scheduler, and draw the noise that the loop begins with."""

    parts = (TRANSFORMER, SCHEDULER)
    settings = ("num_inference_steps",)
    takes = (
        LABELS,
        GENERATOR,
        InputParam("latents", type_hint=torch.Tensor, description="Standard normal noise (B, C, H, W) to start from."),
        InputParam("num_inference_steps", type_hint=int, description="Number of steps."),
    )
    gives = (
        OutputParam("latents", type_hint=torch.Tensor, description="Noisy latents (B, C, H, W)."),
        OutputParam("timesteps", type_hint=torch.Tensor, description="Timestep of each step (N,)."),
    )

    def run(self, components: Any, block: Any) -> None:
        config, device = components.transformer.config, components.transformer.device
        steps = usual_num_steps(components) if block.num_inference_steps is None else block.num_inference_steps
        block.timesteps = set_timesteps(components.scheduler, steps, None, None)
        shape = (len(block.labels), config.in_channels, *config.sample_height_width)
        generator = check_noise(shape, block.generator, block.latents, device)
        noise = draw_noise(shape, generator, block.latents, device)
        block.latents = first_latents(components.scheduler, noise, None, block.timesteps[:1])


class DiTDenoiseStep(_Block):
    """Take the noise from the latents, step by step, with guidance."""

    parts = (TRANSFORMER, SCHEDULER)
    settings = ("guidance_scale", "guidance_channels", "prediction_type")
    takes = (
        LABELS,
        GENERATOR,
        InputParam("latents", type_hint=torch.Tensor, required=True, description="Noisy latents (B, C, H, W)."),
        InputParam("timesteps", type_hint=torch.Tensor, required=True, description="Timestep of each step (N,)."),
        InputParam("guidance_scale", description="Scale of guidance, or a guider of diffusers; 1 is no guidance."),
        InputParam("eta", type_hint=float, default=0.0, description="Share of noise in [0, 1]; only for DDIM."),
    )
    gives = (OutputParam("latents", type_hint=torch.Tensor, description="Clean latents (B, C, H, W)."),)

    def run(self, components: Any, block: Any) -> None:
        model, scheduler, ts = components.transformer, components.scheduler, block.timesteps
        scale = usual_guidance_scale(components) if block.guidance_scale is None else block.guidance_scale
        channels = components.config.get("guidance_channels") or "all"
        guidance = Guidance(scale, channels, None, model.config)
        guidance.plan(ts, None, "steps", functools.partial(noise_levels, scheduler))
        predicted = check_scheduler(scheduler, components.config.get("prediction_type"), model.config.learn_sigma)
        size = latent_size(model.config, 1, None, None)
        positions = resized_positions([model], size, 1, None)
        budget = DiTPipeline.conditioning_bytes
        denoising = Denoising(model, scheduler, ts, block.labels, guidance, positions, budget, predicted)
        arguments = step_arguments(scheduler, block.generator, block.eta)
        for t, denoise in zip(ts, denoising.steps(model.device), strict=True):
            block.latents = scheduler.step(denoise(block.latents), t, block.latents, **arguments).prev_sample
        if not torch.isfinite(block.latents).all():
            raise FloatingPointError("the latents are not finite: lower guidance_scale, or use bfloat16 or float32")


class DiTDecodeStep(_Block):
    """Turn latents into images."""

    parts = (VAE,)
    takes = (
        InputParam("latents", type_hint=torch.Tensor, required=True, description="Clean latents (B, C, H, W)."),
        InputParam("output_type", type_hint=str, default="pil", description="Form of the images: pil, np or pt."),
    )
    gives = (OutputParam("images", description="Images."),)

    def run(self, components: Any, block: Any) -> None:
        vae = components.vae
        pixels = decode_latents(vae, block.latents, DiTPipeline.decode_batch_size)
        processor = VaeImageProcessor(vae_scale_factor=1 if vae is None else vae_shrink_factor(vae.config))
        block.images = processor.postprocess(pixels, block.output_type)


class DiTBlocks(SequentialPipelineBlocks):
    """All blocks of `DiTPipeline`, in order."""

    block_classes = [DiTLabelsStep, DiTLatentsStep, DiTDenoiseStep, DiTDecodeStep]
    block_names = ["labels", "latents", "denoise", "decode"]

    @property
    def description(self) -> str:
        return "Images of classes, by a DiT."


def to_modular(pipeline: DiTPipeline, blocks: ModularPipelineBlocks | None = None) -> ModularPipeline:
    """Return a modular pipeline with the parts and settings of a pipeline, which it shares.

    Args:
        pipeline: Pipeline whose transformer, scheduler, VAE and settings are taken.
        blocks: Blocks to run. Default: `DiTBlocks()`, whose images are those of the pipeline, bit for bit.
    """
    modular = (DiTBlocks() if blocks is None else blocks).init_pipeline()
    modular.update_components(**{name: part for name, part in pipeline.components.items() if part is not None})
    modular.register_to_config(**{name: pipeline.config.get(name) for name in PIPELINE_SETTINGS})
    return modular
