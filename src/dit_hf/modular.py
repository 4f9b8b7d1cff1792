"""Blocks for Modular Diffusers: labels, picture, latents, denoising loop, decoding; together what the pipelines do.

A block can be replaced, left out, or put into a pipeline of other blocks. `save_modular` writes this file and what it
is made of beside the weights, as one file that runs without the package. Legend: B images, C latent channels, H and W
latent height and width, N steps.
"""

import functools
import json
from pathlib import Path
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

from .pipeline_dit import DiTPipeline
from .sampling.class_names import label_batch
from .sampling.defaults import PIPELINE_SETTINGS, usual_guidance_scale, usual_num_steps
from .sampling.denoising import Denoising
from .sampling.guidance import Guidance
from .sampling.latents import check_noise, decode_latents, draw_noise, latent_size, resized_positions
from .sampling.rehearsal import rehearse
from .sampling.schedulers import (
    check_scheduler,
    noise_levels,
    set_timesteps,
    start_midway,
    step_arguments,
    takes_variance,
)
from .sampling.sources import encode_source, first_latents, put_back, read_images
from .saved_code import IN_PACKAGE, import_for, write_code
from .vae import vae_shrink_factor

CODE = "modular_dit"  # module of a saved folder that holds this file
# without the package, diffusers takes the class that lies beside the weights
TRANSFORMER = ComponentSpec("transformer", import_for("blocks", "dit_hf.modeling_dit").DiTModel if IN_PACKAGE else None)
SCHEDULER = ComponentSpec("scheduler", DPMSolverMultistepScheduler)
VAE = ComponentSpec("vae", AutoencoderKL)
LABELS = InputParam("labels", type_hint=list, required=True, description="Class id of each image, or None for each.")
GENERATOR = InputParam("generator", description="Generator of all noise, or one per image.")
SOURCE = InputParam("source", description="Encoded picture to start from, or None.")
NOISE = InputParam("noise", type_hint=torch.Tensor, description="Noise (B, C, H, W) that was drawn.")
IMAGE_STRENGTH, MASK_STRENGTH = 0.6, 1.0  # of image to image, and of inpainting, where a call names none
SIDES = (
    InputParam("height", type_hint=int, description="Height of the images in pixels; None for the trained one."),
    InputParam("width", type_hint=int, description="Width of the images in pixels; None for the trained one."),
)


class _Saved(ModularPipelineBlocks):
    """Blocks that are saved with their code."""

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the code of the blocks, for `ModularPipelineBlocks.from_pretrained` with or without this package.

        Args:
            save_directory: Folder.
            push_to_hub: Not to be used, as the repository would be public.
            **kwargs: Arguments of diffusers' `save_config`.

        Raises:
            ValueError: If the folder would not hold these blocks, or would become public.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True would be public by default: upload the folder with huggingface_hub")
        name, blocks = type(self).__name__, [type(block) for block in self.sub_blocks.values()]
        if type(self).__module__ != __name__:
            raise ValueError(f"{name} is a class of another file, which would not be saved: save that file yourself")
        if blocks != list(getattr(self, "block_classes", [])):
            raise ValueError(
                f"blocks of {name} were replaced or left out, which would be lost: write a class whose block_classes "
                "and block_names are those wanted, and save its file yourself"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).read_text(encoding="utf-8")
        if IN_PACKAGE:
            source = import_for("saving blocks", "dit_hf.hub.flatten").flatten(Path(__file__))
        (folder / f"{CODE}.py").write_text(source, encoding="utf-8")
        self.register_to_config(auto_map={"ModularPipelineBlocks": f"{CODE}.{name}"})
        self.save_config(str(folder), **kwargs)


class _Block(_Saved):
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


class DiTSourceStep(_Block):
    """Read and encode the picture that the images start from, and the mask of what is drawn anew, if there is one."""

    parts = (TRANSFORMER, VAE)
    takes = (
        LABELS,
        InputParam("image", description="Picture to start from, or one per image; None to start from noise."),
        InputParam("mask_image", description="Mask, white where something new is drawn; None to change all of it."),
        *SIDES,
    )
    gives = (OutputParam("source", description="Encoded picture to start from, or None."),)

    def run(self, components: Any, block: Any) -> None:
        config, vae, mask = components.transformer.config, components.vae, None
        if block.image is None and block.mask_image is not None:
            raise ValueError("mask_image without image: pass the picture that the mask belongs to")
        block.source = None
        if block.image is not None:
            factor, device = _factor(vae), components.transformer.device
            shape = (len(block.labels), config.in_channels, *latent_size(config, factor, block.height, block.width))
            channels = config.in_channels if vae is None else vae.config.in_channels
            colours = VaeImageProcessor(vae_scale_factor=factor)
            pixels = read_images("image", block.image, colours, shape, channels).to(device)
            if block.mask_image is not None:
                black_and_white = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
                processor = VaeImageProcessor(vae_scale_factor=factor, **black_and_white)
                mask = read_images("mask_image", block.mask_image, processor, shape, 1).to(device)
            block.source = encode_source(vae, pixels, mask, factor, DiTPipeline.decode_batch_size)


class DiTLatentsStep(_Block):
    """Set the timesteps of the scheduler, and draw the noise that the loop begins with."""

    parts = (TRANSFORMER, SCHEDULER, VAE)
    settings = ("num_inference_steps",)
    takes = (
        LABELS,
        GENERATOR,
        SOURCE,
        InputParam("latents", type_hint=torch.Tensor, description="Standard normal noise (B, C, H, W) to start from."),
        InputParam("num_inference_steps", type_hint=int, description="Number of steps."),
        InputParam("timesteps", description="Falling whole numbers of the training schedule, instead of a number."),
        InputParam("sigmas", description="Falling noise levels in the scheduler's own terms, instead of a number."),
        InputParam("strength", type_hint=float, description="Share of the steps that a picture is changed by."),
        *SIDES,
    )
    gives = (
        OutputParam("latents", type_hint=torch.Tensor, description="Noisy latents (B, C, H, W)."),
        OutputParam("timesteps", type_hint=torch.Tensor, description="Timestep of each step (N,)."),
        OutputParam("noise", type_hint=torch.Tensor, description="Noise (B, C, H, W) that was drawn."),
    )

    def run(self, components: Any, block: Any) -> None:
        config, device, scheduler = components.transformer.config, components.transformer.device, components.scheduler
        source, steps, strength = block.source, block.num_inference_steps, block.strength
        if steps is None and block.timesteps is None and block.sigmas is None:
            steps = usual_num_steps(components)
        if source is None and strength is not None:
            raise ValueError(f"strength={strength!r} without image: pass a picture to start from, or leave it out")
        block.timesteps = set_timesteps(scheduler, steps, block.timesteps, block.sigmas)
        if source is not None:
            usual = IMAGE_STRENGTH if source.mask is None else MASK_STRENGTH
            block.timesteps = start_midway(scheduler, usual if strength is None else strength)
        size = latent_size(config, _factor(components.vae), block.height, block.width)
        shape = (len(block.labels), config.in_channels, *size)
        generator = check_noise(shape, block.generator, block.latents, device)
        block.noise = draw_noise(shape, generator, block.latents, device)
        block.latents = first_latents(scheduler, block.noise, source, block.timesteps[:1])


class DiTDenoiseStep(_Block):
    """Take the noise from the latents, step by step, with guidance."""

    parts = (TRANSFORMER, SCHEDULER, VAE)
    settings = ("guidance_scale", "guidance_channels", "prediction_type")
    takes = (
        LABELS,
        GENERATOR,
        SOURCE,
        NOISE,
        InputParam("latents", type_hint=torch.Tensor, required=True, description="Noisy latents (B, C, H, W)."),
        InputParam("timesteps", type_hint=torch.Tensor, required=True, description="Timestep of each step (N,)."),
        InputParam("guidance_scale", description="Scale of guidance, or a guider of diffusers; 1 is no guidance."),
        InputParam("guidance_channels", type_hint=str, description="Channels that guidance moves."),
        InputParam("guidance_interval", description="Guide only from the first to the second of these."),
        InputParam("guidance_interval_unit", type_hint=str, default="steps", description="Unit: steps or sigma."),
        InputParam("guide_model", description="Weaker DiT that guidance moves away from (autoguidance)."),
        InputParam("position_policy", type_hint=str, description="How to place patches at another size."),
        InputParam("eta", type_hint=float, default=0.0, description="Share of noise in [0, 1]; only for DDIM."),
    )
    gives = (OutputParam("latents", type_hint=torch.Tensor, description="Clean latents (B, C, H, W)."),)

    def run(self, components: Any, block: Any) -> None:
        model, scheduler, ts, source = components.transformer, components.scheduler, block.timesteps, block.source
        scale = usual_guidance_scale(components) if block.guidance_scale is None else block.guidance_scale
        channels = block.guidance_channels or components.config.get("guidance_channels") or "all"
        guidance = Guidance(scale, channels, block.guide_model, model.config)
        levels = functools.partial(noise_levels, scheduler)
        guidance.plan(ts, block.guidance_interval, block.guidance_interval_unit, levels)
        predicted = check_scheduler(scheduler, components.config.get("prediction_type"), model.config.learn_sigma)
        models = [model, *([] if block.guide_model is None else [block.guide_model])]
        size = tuple(block.latents.shape[2:])  # (H, W)
        positions = resized_positions(models, size, _factor(components.vae), block.position_policy)
        budget = DiTPipeline.conditioning_bytes
        denoising = Denoising(model, scheduler, ts, block.labels, guidance, positions, budget, predicted)
        arguments = step_arguments(scheduler, block.generator, block.eta)
        rehearse(scheduler, ts, arguments, takes_variance(scheduler, model.config.learn_sigma))
        for step, (t, denoise) in enumerate(zip(ts, denoising.steps(model.device), strict=True)):
            block.latents = scheduler.step(denoise(block.latents), t, block.latents, **arguments).prev_sample
            if source is not None and step + 1 < len(ts):
                block.latents = put_back(block.latents, source, block.noise, scheduler, ts[step + 1 : step + 2])
        if not torch.isfinite(block.latents).all():
            raise FloatingPointError("the latents are not finite: lower guidance_scale, or use bfloat16 or float32")


class DiTDecodeStep(_Block):
    """Turn latents into images; outside a mask, the pixels are those of the picture."""

    parts = (VAE,)
    takes = (
        InputParam("latents", type_hint=torch.Tensor, required=True, description="Clean latents (B, C, H, W)."),
        InputParam("output_type", type_hint=str, default="pil", description="Form of the images: pil, np or pt."),
        SOURCE,
    )
    gives = (OutputParam("images", description="Images."),)

    def run(self, components: Any, block: Any) -> None:
        pixels, source = decode_latents(components.vae, block.latents, DiTPipeline.decode_batch_size), block.source
        if source is not None and source.mask is not None:
            pixels = torch.where(source.mask > 0, pixels, source.pixels)
        block.images = VaeImageProcessor(vae_scale_factor=_factor(components.vae)).postprocess(
            pixels, block.output_type
        )


def _factor(vae: Any) -> int:
    return 1 if vae is None else vae_shrink_factor(vae.config)


class DiTBlocks(_Saved, SequentialPipelineBlocks):
    """All blocks of `DiTPipeline`, in order; with `image` those of image to image, with `mask_image` of inpainting."""

    block_classes = [DiTLabelsStep, DiTSourceStep, DiTLatentsStep, DiTDenoiseStep, DiTDecodeStep]
    block_names = ["labels", "source", "latents", "denoise", "decode"]

    @property
    def description(self) -> str:
        return "Images of classes, by a DiT, from noise or from a picture."


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


def save_modular(modular: ModularPipeline, folder: str | Path, repo_id: str | None = None) -> None:
    """Write a modular pipeline with its code, so that `ModularPipeline.from_pretrained` loads it without this package.

    Args:
        modular: Pipeline of `to_modular` whose blocks are a class of this file.
        folder: New or empty folder. A `model_index.json` there would hide the model's code from diffusers.
        repo_id: Repository that the folder will be uploaded to: diffusers writes down where the weights lie. None for
            a folder that stays on this machine.

    Raises:
        ValueError: If the folder is not empty, or the blocks were changed.
    """
    folder = Path(folder).absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: pass a new folder")
    modular.blocks.save_pretrained(folder)
    modular.save_pretrained(str(folder), overwrite_modular_index=True)
    index_file = folder / ModularPipeline.config_name
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for name in ("transformer", "scheduler", "vae"):
        if isinstance(index.get(name), list):  # [library, class, where it lies]
            index[name][2]["pretrained_model_name_or_path"] = repo_id or str(folder)
    index["transformer"][:2], index["transformer"][2]["type_hint"] = [None, None], [None, None]
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_code(folder, modular.transformer)
    (folder / "pipeline_dit.py").unlink()  # code of the pipeline that is not modular
