"""Sampling from a DiT: labels -> latents -> guidance -> a stock diffusers scheduler -> VAE -> images.

This file travels to the Hub beside the weights and runs there without the package, so it imports nothing of it.
Legend: B images, C latent channels, H and W latent height and width.
"""

import difflib
import functools
import importlib
import inspect
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.models import CacheMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

logger = logging.get_logger(__name__)

# How many channels of epsilon guidance moves; None is all. The published numbers of DiT guide the first three of four.
GUIDANCE_CHANNELS: dict[str, int | None] = {"first_three": 3, "all": None}

# Those of diffusers' guiders that work on a conditional and an unconditional answer alone.
GUIDERS = (
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "TangentialClassifierFreeGuidance",
)


class SchedulerTraits(NamedTuple):
    """What sampling has to know of a scheduler beyond its interface."""

    num_steps: int  # the usual number of steps
    learned_variance: Literal["used", "ignored", "refused"]  # for variance_type "learned" and "learned_range"
    steps_by_ratio: bool = False  # its previous timestep is t - T // num_steps whatever the spacing
    flow: bool = False  # flow matching: no betas, no field prediction_type
    starts_midway: bool = True  # from an image with some noise on it


SCHEDULERS: dict[str, SchedulerTraits] = {
    "DDPMScheduler": SchedulerTraits(250, "used"),
    "DDIMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True),
    "PNDMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True, starts_midway=False),  # it counts its calls
    "EulerDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "EulerAncestralDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "HeunDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "DPMSolverMultistepScheduler": SchedulerTraits(25, "refused"),
    "DPMSolverSinglestepScheduler": SchedulerTraits(25, "refused"),
    "UniPCMultistepScheduler": SchedulerTraits(25, "ignored"),
    "DEISMultistepScheduler": SchedulerTraits(25, "ignored"),
    "SASolverScheduler": SchedulerTraits(25, "refused"),
    "FlowMatchEulerDiscreteScheduler": SchedulerTraits(50, "ignored", flow=True),
    "FlowMatchHeunDiscreteScheduler": SchedulerTraits(50, "ignored", flow=True),
}


class _Source(NamedTuple):
    """What an image-to-image pipeline starts from, as the user passed it."""

    image: PipelineImageInput
    strength: float
    mask_image: PipelineImageInput | None = None


class _Run(NamedTuple):
    """What a call has settled before its loop."""

    ts: Tensor  # the timestep of each evaluation, in host memory
    labels: list[int] | list[None]
    guided: list[bool]  # which evaluations are guided
    guidance: float | BaseGuidance  # scale, or guider
    num_channels: int  # of epsilon, that are guided
    guide_model: PreTrainedModel | None
    pos_embeds: list[Tensor | None]  # of the transformer and the guide, at another size than trained


class _Start(NamedTuple):
    """What a source is as tensors; a mask is 1 where something new is drawn."""

    pixels: Tensor  # (B or 1, 3, height, width) in [-1, 1]
    latents: Tensor  # (B or 1, C, H, W)
    mask: Tensor | None  # (B or 1, 1, height, width)
    latent_mask: Tensor | None  # (B or 1, 1, H, W)


def _traits(scheduler: SchedulerMixin) -> SchedulerTraits:
    if isinstance(scheduler, DDIMInverseScheduler):  # it does not sample: see DiTImg2ImgPipeline.invert
        return SchedulerTraits(50, "ignored", steps_by_ratio=True, starts_midway=False)
    for cls in type(scheduler).__mro__:  # a subclass samples as its parent does
        if cls.__name__ in SCHEDULERS:
            return SCHEDULERS[cls.__name__]
    raise ValueError(f"{type(scheduler).__name__} is not supported: choose from {', '.join(SCHEDULERS)}")


def _check_prediction(scheduler: SchedulerMixin, prediction_type: str | None) -> str:
    """Refuse a scheduler that misreads the model, and return what the model predicts (None: as the scheduler says)."""
    name, config, flow = type(scheduler).__name__, scheduler.config, _traits(scheduler).flow
    expected = "flow_prediction" if flow else config.prediction_type
    if flow and prediction_type is None:
        raise ValueError(f"{name} needs a model trained by flow matching: if it was, pass prediction_type='{expected}'")
    if prediction_type not in (None, expected):
        fix = "a scheduler with betas, such as DDIMScheduler" if flow else f"prediction_type={prediction_type!r} in it"
        fix = "FlowMatchEulerDiscreteScheduler" if prediction_type == "flow_prediction" else fix
        raise ValueError(f"{name} samples {expected!r}, the model was trained with {prediction_type!r}: use {fix}")
    if expected == "flow_prediction" and not flow and not config.get("use_flow_sigmas"):
        raise ValueError(f"{name} has prediction_type='flow_prediction': it needs use_flow_sigmas=True beside it")
    return expected


def _takes_variance(scheduler: SchedulerMixin, learn_sigma: bool) -> bool:
    """Whether the scheduler takes 2C channels; refuse one that wants a variance that is not there, or fails on it."""
    name, treatment = type(scheduler).__name__, _traits(scheduler).learned_variance
    variance_type = scheduler.config.get("variance_type")
    if variance_type not in ("learned", "learned_range") or treatment == "ignored":
        return False
    if treatment == "refused" or not learn_sigma:
        why = "it keeps three channels only" if treatment == "refused" else "the model has learn_sigma=False"
        fix = None if treatment == "refused" else "fixed_small"
        raise ValueError(
            f"{name} cannot use variance_type={variance_type!r}, {why}: build it with "
            f"{name}.from_config(config, variance_type={fix!r})"
        )
    return True


def _check_spacing(scheduler: SchedulerMixin, num_steps: int) -> None:
    """Refuse timesteps that the scheduler's own step does not follow."""
    name, spacing = type(scheduler).__name__, scheduler.config.get("timestep_spacing")
    if not _traits(scheduler).steps_by_ratio or spacing == "leading":
        return
    if spacing == "linspace" or scheduler.config.num_train_timesteps % num_steps:
        raise ValueError(
            f"{name} always steps by {scheduler.config.num_train_timesteps} // {num_steps}, not as timestep_spacing="
            f"{spacing!r} says: build it with {name}.from_config(config, timestep_spacing='leading')"
        )


def _check_solver(scheduler: SchedulerMixin) -> None:
    """Refuse settings of a solver with which it fails on the exact denoiser of a Gaussian."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "DEISMultistepScheduler" and config.solver_order > 2:
        why, fix = "loses its digits, and errs the more the more steps it takes", "solver_order=2"
        raise ValueError(f"{name} with solver_order={config.solver_order} {why}: use {fix}")
    if name == "UniPCMultistepScheduler" and config.solver_type == "bh1" and config.final_sigmas_type == "zero":
        why, fix = "multiplies infinity by zero in its last step", "solver_type='bh2' or final_sigmas_type='sigma_min'"
        raise ValueError(f"{name} with solver_type='bh1' {why}: use {fix}")


def guide(cond: Tensor, uncond: Tensor, scale: float, num_channels: int) -> Tensor:
    """Move the first channels away from the unconditional answer (Ho & Salimans 2022, arXiv 2207.12598, eq. 6)."""
    guided = uncond[:, :num_channels] + scale * (cond[:, :num_channels] - uncond[:, :num_channels])
    return torch.cat([guided, cond[:, num_channels:]], dim=1)  # (B, C or 2C, H, W)


def _evaluate(model: PreTrainedModel, x: Tensor, conditioning: Any, pos_embed: Tensor | None) -> Tensor:
    resized = {} if pos_embed is None else {"pos_embed": pos_embed}
    answer: Tensor = model(x.to(model.dtype), conditioning=conditioning, **resized).sample
    return answer.to(torch.float32, copy=True)  # a CUDA graph's next replay would overwrite it


def _brought_back(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose forward alone would bring it back where it is offloaded."""
    if hasattr(model, "_hf_hook"):
        model._hf_hook.pre_forward(model)
    return model


def names_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name to the classes that have it; "tench, Tinca tinca" are two names of one class."""
    names: dict[str, list[int]] = {}
    for label_id, label in id2label.items():
        for name in dict.fromkeys(part.strip() for part in label.split(",")):
            names.setdefault(name, []).append(label_id)
    return dict(sorted(names.items()))


AUTO_MAP = {"AutoConfig": "modeling_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}
RELATIVE_IMPORT = re.compile(r"^from \.", re.MULTILINE)


def flat_source(file: Path) -> str:
    """Read code as one file that stands alone, which code that came from the Hub is already."""
    source = file.read_text(encoding="utf-8")
    if RELATIVE_IMPORT.search(source):
        source = importlib.import_module("dit_hf.hub.flatten").flatten(file)
    return source


class DiTPipeline(DiffusionPipeline):
    """Class-conditional image generation with a DiT.

    Args:
        transformer: a `DiTModel`.
        vae: an `AutoencoderKL` or the like with the transformer's latent channels, or None for a model of pixels.
        scheduler: one of `SCHEDULERS`; it can be replaced later.
        id2label: class names by id; several names of a class are separated by commas. Kept in `model_index.json`.
        guidance_channels: "first_three" as the published numbers, or "all"; see `GUIDANCE_CHANNELS`.
        prediction_type: what the model was trained to predict; None takes it from the scheduler. Flow matching needs
            "flow_prediction", as its schedulers do not say.

    Raises:
        ValueError: when the parts do not fit each other.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _transformer_module = "dit_hf.modeling_dit"  # where `from_pretrained` finds DiTModel

    conditioning_bytes = 2**29  # of precomputed modulations at most; may be set, as the next
    decode_batch_size = 16  # images that the VAE decodes at once

    def __init__(
        self,
        transformer: PreTrainedModel,
        vae: ModelMixin | None,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
        guidance_channels: str = "all",  # diffusers reads annotations when loading, and knows no Literal
        prediction_type: str | None = None,
    ) -> None:
        super().__init__()
        config = transformer.config
        if getattr(config, "model_type", None) != "dit":
            raise ValueError(f"{type(transformer).__name__} is not a DiTModel: convert it with dit_hf.conversion")
        if vae is not None:
            _check_vae(vae.config, config.in_channels)
        if vae is not None and scheduler.config.get("clip_sample"):
            logger.warning("The scheduler has clip_sample=True, which clips latents at +-1: set it to False.")
        _check_guidance_channels(guidance_channels)
        prediction_type = _check_prediction(scheduler, prediction_type)
        _takes_variance(scheduler, config.learn_sigma)
        _check_solver(scheduler)
        id2label = {int(label_id): str(label) for label_id, label in (id2label or {}).items()}
        outside = [label_id for label_id in id2label if not 0 <= label_id < config.num_classes]
        if outside:
            raise ValueError(f"id2label has the id {outside[0]}, the transformer the ids 0..{config.num_classes - 1}")
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(
            id2label=id2label or None, guidance_channels=guidance_channels, prediction_type=prediction_type
        )
        factor = self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        rgb, grey = vae is not None or config.in_channels == 3, vae is None and config.in_channels == 1
        processor = functools.partial(VaeImageProcessor, vae_scale_factor=factor)  # to multiples of which it resizes
        self.image_processor = processor(do_convert_rgb=rgb, do_convert_grayscale=grey)
        self.mask_processor = processor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        self.current_timestep: Tensor | None = None  # some of diffusers' caches ask for it

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name, without names that several classes share."""
        return {name: ids[0] for name, ids in names_to_ids(self.config.id2label or {}).items() if len(ids) == 1}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Map class names to ids.

        Args:
            label: a name or a list of names, as in `id2label`; each synonym is a name.

        Raises:
            ValueError: for a name that no class or several classes have.
        """
        names = names_to_ids(self.config.id2label or {})
        ids = []
        for name in [label] if isinstance(label, str) else label:
            found = names.get(name, [])
            if len(found) > 1:
                raise ValueError(f"{name!r} names the classes {', '.join(map(str, found))}: pass one of these ids")
            if not names:
                raise ValueError(f"class {name!r}: this pipeline has no id2label, pass ids instead of names")
            if not found:
                close = " or ".join(map(repr, difflib.get_close_matches(name, names, n=3, cutoff=0.4)))
                raise ValueError(f"no class is named {name!r}: did you mean {close or 'one of pipe.labels'}?")
            ids += found
        return ids

    def _class_ids(self, class_labels: Any) -> list[int]:
        """Turn what the user passed, ids and names mixed, into ids in 0..num_classes-1."""
        num_classes = self.transformer.config.num_classes
        labels = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
        labels = labels if isinstance(labels, (list, tuple)) else [labels]
        if not labels:
            raise ValueError("class_labels is empty: pass at least one id or name")
        ids = []
        for position, label in enumerate(labels):
            if isinstance(label, str):
                ids += self.get_label_ids(label)
                continue
            if isinstance(label, bool) or not hasattr(label, "__index__"):
                raise ValueError(f"class_labels[{position}]={label!r} is neither a whole number nor a name")
            ids.append(operator.index(label))
            if not 0 <= ids[-1] < num_classes:
                raise ValueError(f"class_labels[{position}]={label} is outside 0..{num_classes - 1}")
        return ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float | BaseGuidance = 4.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        num_images_per_label: int = 1,
        num_images: int | None = None,
        guidance_channels: Literal["first_three", "all"] | None = None,
        eta: float = 0.0,
        callback_on_step_end: Callable[["DiTPipeline", int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        *,
        guidance_interval: tuple[float, float] | None = None,
        guidance_interval_unit: Literal["steps", "sigma"] = "steps",
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        position_policy: Literal["extend", "interpolate"] | None = None,
        guide_model: PreTrainedModel | None = None,
        _source: _Source | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images of the given classes.

        Args:
            class_labels: an id or a name, or a list in which both may stand; None for an unconditional model.
            guidance_scale: strength of classifier-free guidance; at 1 and below there is none, and no second pass. Or a
                guider of diffusers, one of `GUIDERS`, with a strength of its own.
            num_inference_steps: 1..T; None takes the scheduler's usual number, see `SCHEDULERS`.
            generator: one, or one per image, which makes an image independent of its batch.
            latents: (B, C, H, W) standard normal noise to start from, instead of drawing it.
            output_type: "latent" gives the final latents undecoded.
            return_dict: whether to return an `ImagePipelineOutput` instead of a tuple.
            num_images_per_label: images of each label, next to each other.
            num_images: how many images, for an unconditional model only.
            guidance_channels: overrides the pipeline's own.
            eta: share of noise in [0, 1], for DDIM only.
            callback_on_step_end: called as `(pipeline, step, timestep, {"latents": latents})` after each step; it may
                return a dictionary with other latents.
            guidance_interval: guide only from the first to the second of these; outside there is no second pass.
            guidance_interval_unit: "steps", in fractions of them from 0 (the start) to 1, the end left out; or "sigma",
                in noise levels, the lower left out: the noise's deviation over the data's factor, in flow matching t.
            timesteps: whole numbers of the training schedule, falling, instead of `num_inference_steps`, where the
                scheduler takes them.
            sigmas: noise levels in the scheduler's own terms, falling, where it takes them.
            height: of the images in pixels; as trained if not given.
            width: likewise.
            position_policy: where the patches are at another size; see `DiTModel.resize_pos_embed`.
            guide_model: a weaker DiT, trained less or smaller, whose answer guidance moves away from, instead of the
                unconditional one (autoguidance, Karras et al. 2024, arXiv 2406.02507).

        Raises:
            ValueError: for an argument outside its limits, before any work.
            FloatingPointError: when latents or images stop being finite; it names the step.

        Source: Peebles & Xie 2022 (arXiv 2212.09748), sections 3.1 and 4.
        """
        labels = self._label_batch(class_labels, num_images_per_label, num_images)
        shape, pos_embeds = self._size(len(labels), height, width, position_policy, guide_model)  # (B, C, H, W)
        num_channels = self._num_guided_channels(guidance_scale, guidance_channels, guide_model)
        self._check_call(shape, generator, latents, output_type)
        generator = list(generator) if isinstance(generator, tuple) else generator
        step_kwargs = self._step_kwargs(generator, eta)
        _check_interval(guidance_interval, guidance_interval_unit)
        ts = self._set_timesteps(num_inference_steps, timesteps, sigmas, _source)  # in host memory
        within = self._guided_steps(ts, guidance_scale, guidance_interval, guidance_interval_unit)
        guided = [num_channels > 0 and step for step in within]
        if self._cached is not None:
            importlib.import_module("dit_hf.caches").check(self._cached._cache_config, guided)
            CacheMixin._reset_stateful_cache(self._cached)

        run = _Run(ts, labels, guided, guidance_scale, num_channels, guide_model, pos_embeds)
        start = None if _source is None else self._encode(_source, shape)
        latents, noise = self._first_latents(shape, generator, latents, start, ts)
        conditionings = self._conditionings(self.transformer, run)
        weak = [None] * len(ts) if guide_model is None else self._conditionings(guide_model, run)
        first_bad = torch.full((), len(ts), device=latents.device)
        steps = zip(self.progress_bar(ts), conditionings, weak, strict=True)
        for step, (t, conditioning, weak_conditioning) in enumerate(steps):
            answer = self._denoise(run, step, latents, conditioning, weak_conditioning)  # (B, C or 2C, H, W)
            latents = self.scheduler.step(answer, t, latents, **step_kwargs).prev_sample  # (B, C, H, W)
            if start is not None and start.latent_mask is not None and step + 1 < len(ts):
                known = self._add_noise(start.latents, noise, ts[step + 1 : step + 2])
                latents = torch.where(start.latent_mask > 0, latents, known)
            # kept on the device, so that the loop never waits for it
            first_bad = torch.where(torch.isfinite(latents).all(), first_bad, first_bad.clamp(max=step))
            if callback_on_step_end is not None:
                latents = (callback_on_step_end(self, step, t, {"latents": latents}) or {}).get("latents", latents)
        if first_bad < len(ts):
            raise FloatingPointError(
                f"latents are not finite after step {first_bad} (t = {ts[first_bad]:g}): lower "
                "guidance_scale, use bfloat16 or float32, or look at the weights"
            )
        images = latents if output_type == "latent" else self._decode(latents, output_type, start)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _label_batch(self, class_labels: Any, per_label: int, num_images: int | None) -> list[int] | list[None]:
        """One class id per image, or one None per image of an unconditional model."""
        _check_count("num_images_per_label", per_label)
        num_classes = self.transformer.config.num_classes
        if num_classes == 0:
            if class_labels is not None:
                raise ValueError(f"class_labels={class_labels!r}: the model is unconditional, pass num_images instead")
            _check_count("num_images", 1 if num_images is None else num_images)
            return [None] * (num_images or 1) * per_label
        if num_images is not None:
            raise ValueError(f"num_images={num_images} is for unconditional models: pass num_images_per_label instead")
        if class_labels is None:
            raise ValueError(f"class_labels=None: the model has {num_classes} classes, pass ids or names")
        return [label for label in self._class_ids(class_labels) for _ in range(per_label)]

    def _num_guided_channels(self, guidance: Any, guidance_channels: str | None, guide_model: Any) -> int:
        """How many channels of epsilon are guided, 0 without guidance."""
        config = self.transformer.config
        if isinstance(guidance, BaseGuidance):
            if (name := type(guidance).__name__) not in GUIDERS:
                raise ValueError(f"guidance_scale={name} hooks parts that no DiT has: choose from {', '.join(GUIDERS)}")
        elif not isinstance(guidance, (int, float, np.number)) or not 0 <= guidance < math.inf:
            raise ValueError(f"guidance_scale={guidance!r}: pass a finite number from 0 on; 1 is no guidance")
        _check_guidance_channels(guidance_channels := guidance_channels or self.config.guidance_channels)
        if not isinstance(guidance, BaseGuidance) and guidance <= 1:
            return 0
        if guide_model is not None:
            _check_guide(guide_model.config, config)
        elif not config.has_null_class:
            raise ValueError(
                f"guidance_scale={guidance}: a model with num_classes={config.num_classes} and class_dropout_prob="
                f"{config.class_dropout_prob} has no null class to guide with: pass guidance_scale=1 or a guide_model"
            )
        return min(GUIDANCE_CHANNELS[guidance_channels] or config.in_channels, config.in_channels)

    def _size(self, batch: int, height: Any, width: Any, policy: str | None, guide_model: Any) -> tuple[tuple, list]:
        """The latents' shape, and the position embedding of each model; None where it has its own size."""
        config, factor = self.transformer.config, self.vae_scale_factor
        trained, unit = config.sample_height_width, factor * config.patch_size
        size = []
        for name, pixels, latent in (("height", height, trained[0]), ("width", width, trained[1])):
            if pixels is not None and (not isinstance(pixels, int) or pixels < unit or pixels % unit):
                raise ValueError(f"{name}={pixels!r}: pass a multiple of {unit}, the pixels of a patch")
            size.append(latent if pixels is None else pixels // factor)
        if (*size,) == trained:
            return (batch, config.in_channels, *size), [None, None]
        if policy not in ("extend", "interpolate"):
            made, usual = ([side * factor for side in sides] for sides in (size, trained))
            raise ValueError(
                f"images of {made} pixels from a model of {usual}: pass position_policy='extend' or 'interpolate', not "
                f"{policy!r}"
            )
        models = [self.transformer, *([guide_model] if guide_model is not None else [])]
        return (batch, config.in_channels, *size), [_brought_back(m).resize_pos_embed(*size, policy) for m in models]

    def _check_call(self, shape: tuple, generator: Any, latents: Any, output_type: str) -> None:
        _check_prediction(self.scheduler, self.config.prediction_type)
        _takes_variance(self.scheduler, self.transformer.config.learn_sigma)
        _check_solver(self.scheduler)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r}: choose from pil, np, pt, latent")
        many = isinstance(generator, (list, tuple))
        if many and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} images: pass one, or one per image")
        for one in generator if many else [] if generator is None else [generator]:
            if not isinstance(one, torch.Generator):
                raise ValueError(f"generator={one!r}: pass torch.Generator().manual_seed(...), or one per image")
            if one.device.type not in ("cpu", self._execution_device.type):
                raise ValueError(
                    f"a generator on {one.device} for a pipeline on {self._execution_device}: use its device"
                )
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, these images need {shape}")

    def _set_timesteps(self, num_steps: int | None, timesteps: Any, sigmas: Any, source: _Source | None) -> Tensor:
        """Set the scheduler to these steps, and return the timestep of each evaluation of the model."""
        name, num_train = type(self.scheduler).__name__, self.scheduler.config.num_train_timesteps
        own = {"num_inference_steps": num_steps, "timesteps": timesteps, "sigmas": sigmas}
        given = {argument: value for argument, value in own.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each say which steps to take: pass one of them")
        for argument in given.keys() - inspect.signature(self.scheduler.set_timesteps).parameters.keys():
            raise ValueError(f"{name} takes no {argument}: pass num_inference_steps, or another scheduler")
        if timesteps is not None:
            given["timesteps"] = _falling("timesteps", timesteps, operator.index, 0, num_train - 1)
        elif sigmas is not None:
            given["sigmas"] = _falling("sigmas", sigmas, float, 0.0, math.inf)
        else:
            num_steps = min(_traits(self.scheduler).num_steps, num_train) if num_steps is None else num_steps
            _check_count("num_inference_steps", num_steps, num_train)
            _check_spacing(self.scheduler, num_steps)
            given["num_inference_steps"] = num_steps
        # in host memory: schedulers branch on them and index with them, for which a loop on a GPU would stop and wait
        self.scheduler.set_timesteps(**given, device="cpu")
        if source is None:
            return self.scheduler.timesteps
        if not _traits(self.scheduler).starts_midway:
            raise ValueError(f"{name} cannot start from an image: use DDIMScheduler or DPMSolverMultistepScheduler")
        if not isinstance(source.strength, Real) or not 0 < source.strength <= 1:
            raise ValueError(f"strength={source.strength!r}: pass a number in (0, 1], 1 for all of the noise")
        order = self.scheduler.order
        total = math.ceil(len(self.scheduler.timesteps) / order)
        if round(total * source.strength) == 0:
            raise ValueError(f"strength={source.strength} of {total} steps is none: pass more of either")
        begin = (total - round(total * source.strength)) * order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        return self.scheduler.timesteps[begin:]

    def _guided_steps(self, ts: Tensor, guidance: Any, interval: tuple[float, float] | None, unit: str) -> list[bool]:
        """Which evaluations are guided (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""
        guided = [True] * len(ts)
        if interval is not None and unit == "steps":
            guided = [interval[0] <= step / len(ts) < interval[1] for step in range(len(ts))]
        elif interval is not None:
            guided = [interval[0] < sigma <= interval[1] for sigma in self._noise_levels(ts)]
        if isinstance(guidance, BaseGuidance):
            for step, t in enumerate(ts):
                guidance.set_state(step, len(ts), t)
                guided[step] &= guidance.num_conditions == 2
            guidance.set_state(0, len(ts), ts[0])
            guidance.prepare_inputs({})  # which forgets the last run
        return guided

    def _noise_levels(self, ts: Tensor) -> np.ndarray:
        """The deviation of noise added to x_0 at each timestep; in flow matching t of (1 - t) x_0 + t noise."""
        if _check_prediction(self.scheduler, self.config.prediction_type) == "flow_prediction":
            return ts.numpy() / self.scheduler.config.num_train_timesteps
        log_alpha_bar = self.scheduler.alphas_cumprod.double().log().cpu().numpy()
        return np.sqrt(np.expm1(-np.interp(ts.numpy(), np.arange(len(log_alpha_bar)), log_alpha_bar)))

    def _step_kwargs(self, generator: Any, eta: float) -> dict[str, Any]:
        parameters = inspect.signature(self.scheduler.step).parameters
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} is outside [0, 1]: 0 is deterministic, 1 draws as much noise as DDPM")
        if eta and "eta" not in parameters:
            raise ValueError(f"eta={eta}: {type(self.scheduler).__name__} has none, leave it at 0 or use DDIMScheduler")
        return {name: value for name, value in {"generator": generator, "eta": eta}.items() if name in parameters}

    def _first_latents(
        self, shape: tuple, generator: Any, latents: Tensor | None, start: _Start | None, ts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the loop begins with, and its noise; float32 whatever the model computes in."""
        device = self._execution_device
        noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents
        noise = noise.to(device, torch.float32)
        if start is not None:
            return self._add_noise(start.latents, noise, ts[:1]), noise
        # flow matching schedulers start at scale 1 and have no such field
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0), noise

    def _add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        latents = latents.expand_as(noise)
        if _traits(self.scheduler).flow:
            return self.scheduler.scale_noise(latents, t, noise)
        return self.scheduler.add_noise(latents, noise, t.expand(len(latents)))

    def _conditionings(self, model: PreTrainedModel, run: _Run) -> Iterator[Any]:
        """For each step what the model derives from its timestep and labels, where a null class guides for 2B rows.

        It is computed once for each timestep and distinct label, for as many steps at once as memory allows, so that
        the loop reads none of the parameters that serve it: a third of the model in adaLN-Zero.
        """
        config, device, ts = model.config, self._execution_device, run.ts
        paired = [guided and run.guide_model is None for guided in run.guided]
        distinct = [*dict.fromkeys(run.labels), *([config.null_class_id] if any(paired) else [])]  # L labels
        plain = torch.tensor([distinct.index(label) for label in run.labels], device=device)  # (B,)
        both = torch.cat([plain, torch.full_like(plain, len(distinct) - 1)])  # (2B,)
        ids = None if config.num_classes == 0 else torch.tensor(distinct, device=device)
        # an upper bound: 6D for each block, and 3D for the final layer and the embedding
        step_bytes = 6 * config.hidden_size * (config.num_hidden_layers + 1) * len(distinct) * model.dtype.itemsize
        window = max(1, self.conditioning_bytes // 2 // step_bytes)  # half, as two live while one follows the other
        for begin in range(0, len(ts), window):
            t = ts[begin : begin + window].to(device)  # (W,)
            arguments = {"timestep": t.repeat_interleave(len(distinct))}  # (W L,)
            if ids is not None:
                arguments["class_labels"] = ids.repeat(len(t))
            if config.has_null_class:  # no label is dropped, also where the model is in training mode
                arguments["drop_labels"] = torch.zeros(len(t) * len(distinct), dtype=torch.bool, device=device)
            table = _brought_back(model).condition(**arguments)  # (W L, ...)
            for step in range(len(t)):
                rows = (both if paired[begin + step] else plain) + step * len(distinct)
                # copies, not views: a compiled model would be compiled again for a view's offset
                blocks = tuple(None if block is None else block[rows] for block in table.blocks)
                final = None if table.final is None else table.final[rows]
                yield table._replace(embedding=table.embedding[rows], blocks=blocks, final=final)

    def _denoise(self, run: _Run, step: int, latents: Tensor, conditioning: Any, weak_conditioning: Any) -> Tensor:
        """What the scheduler's step takes: guided epsilon, with the variance where it uses one; float32."""
        model, t = self.transformer, run.ts[step]
        x, self.current_timestep = latents, t  # the scheduler's step takes these, unscaled
        if hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        paired = run.guided[step] and run.guide_model is None  # conditional and unconditional rows in one batch
        with self._cache_context(run, step):
            answer = _evaluate(model, torch.cat([x, x]) if paired else x, conditioning, run.pos_embeds[0])
        if run.guided[step]:
            if run.guide_model is None:
                cond, other = answer.chunk(2)  # (B, C or 2C, H, W)
            else:
                cond, other = answer, _evaluate(run.guide_model, x, weak_conditioning, run.pos_embeds[1])
            if isinstance(run.guidance, BaseGuidance):
                run.guidance.set_state(step, len(run.ts), t)
                moved = run.guidance.forward(cond[:, : run.num_channels], other[:, : run.num_channels]).pred
                answer = torch.cat([moved, cond[:, run.num_channels :]], dim=1)
            else:
                answer = guide(cond, other, run.guidance, run.num_channels)
        return answer if _takes_variance(self.scheduler, model.config.learn_sigma) else answer[:, : latents.shape[1]]

    def enable_cache(self, config: Any) -> None:
        """Let blocks repeat or extrapolate what they computed in earlier steps; the images change a little.

        Args:
            config: the configuration of one of diffusers' caches; `dit_hf.caches` names those that serve a DiT.

        Raises:
            ImportError: where this file runs without the package.
            ValueError: for a cache or a setting that would do nothing, or that a DiT cannot serve.
        """
        try:
            importlib.import_module("dit_hf.caches").enable(self, config)
        except ModuleNotFoundError as error:
            raise ImportError("enable_cache needs the package dit-hf: install it and try again") from error

    def disable_cache(self) -> None:
        """Compute every step in full again."""
        CacheMixin.disable_cache(getattr(self.transformer, "_orig_mod", self.transformer))

    @property
    def _cached(self) -> Any:
        """The transformer, if it has a cache enabled."""
        model = getattr(self.transformer, "_orig_mod", self.transformer)
        return model if getattr(model, "_cache_config", None) is not None else None

    def _cache_context(self, run: _Run, step: int) -> AbstractContextManager:
        if self._cached is None:
            return nullcontext()
        level = float(self._noise_levels(run.ts[step : step + 1])[0])
        if _check_prediction(self.scheduler, self.config.prediction_type) != "flow_prediction":
            level /= 1 + level  # the time of flow matching with the same ratio of noise
        where = {"step_index": step, "num_inference_steps": len(run.ts), "timestep": run.ts[step], "sigma": level}
        # of their own, as the batch is another
        return CacheMixin.cache_context(self._cached, "guided" if run.guided[step] else "unguided", **where)

    def _latent_scale(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and shift from the diffused latents to what the VAE decodes."""
        config = self.vae.config
        std, mean = (
            latents.new_tensor(config.get(name) or [default]).view(1, -1, 1, 1)
            for name, default in (("latents_std", 1.0), ("latents_mean", 0.0))
        )
        return std / config.scaling_factor, mean + (config.get("shift_factor") or 0.0)

    @contextmanager
    def _safe_vae(self) -> Iterator[torch.dtype]:
        dtype = self.vae.dtype
        if dtype == torch.float16 and self.vae.config.get("force_upcast"):  # it overflows, as it says itself
            self.vae.to(torch.float32)
        try:
            yield self.vae.dtype
        finally:
            if self.vae.dtype != dtype:
                self.vae.to(dtype)

    def _encode(self, source: _Source, shape: tuple) -> _Start:
        """Read an image and its mask, and encode the image to the mean of its latents."""
        size, device = (shape[2] * self.vae_scale_factor, shape[3] * self.vae_scale_factor), self._execution_device

        def read(name: str, images: PipelineImageInput, processor: VaeImageProcessor) -> Tensor:
            tensor = processor.preprocess(images, *size).to(device, torch.float32)
            if len(tensor) not in (1, shape[0]):
                raise ValueError(f"{name} holds {len(tensor)} for {shape[0]} images: pass one, or one per image")
            return tensor

        pixels = latents = read("image", source.image, self.image_processor)
        mask = None if source.mask_image is None else read("mask_image", source.mask_image, self.mask_processor)
        latent_mask = None if mask is None else F.max_pool2d(mask, self.vae_scale_factor)  # new where any pixel is
        if self.vae is not None:
            with self._safe_vae() as dtype:
                chunks = latents.to(dtype).split(self.decode_batch_size)
                latents = torch.cat([self.vae.encode(chunk).latent_dist.mode().float() for chunk in chunks])
            factor, shift = self._latent_scale(latents)
            latents = (latents - shift) / factor
        return _Start(pixels, latents, mask, latent_mask)

    def _decode(self, latents: Tensor, output_type: str, start: _Start | None = None) -> Any:
        """Undo the latents' scaling, decode, and convert as diffusers does."""
        images = latents
        if self.vae is not None:
            factor, shift = self._latent_scale(latents)
            with self._safe_vae() as dtype:
                chunks = (latents * factor + shift).to(dtype).split(self.decode_batch_size)
                images = torch.cat([self.vae.decode(chunk).sample.float() for chunk in chunks])  # (B, 3, height, width)
            if not torch.isfinite(images).all():
                raise FloatingPointError(f"the VAE's images are not finite in {dtype}: call pipe.vae.float()")
        if start is not None and start.mask is not None:
            images = torch.where(start.mask > 0, images, start.pixels)
        return self.image_processor.postprocess(images, output_type)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "DiTPipeline":
        """Make a pipeline of this class that shares the parts of another, which keep their dtypes.

        Args:
            pipeline: one of this file's pipelines.
            **kwargs: parts or settings that differ, such as `scheduler`.

        Raises:
            ValueError: if the parts do not fit.
        """
        kept = {name: pipeline.config.get(name) for name in ("id2label", "guidance_channels", "prediction_type")}
        return cls(**{**pipeline.components, **kept, **kwargs})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, verify: bool = True, **kwargs: Any
    ) -> "DiTPipeline":
        """Load a pipeline; diffusers' method, which also takes what others packaged where the package is installed.

        Args:
            pretrained_model_name_or_path: a folder or an id on the Hub, in this project's form or in diffusers' own
                (such as facebook/DiT-XL-2-256), or the file of an original checkpoint, with `vae`: an autoencoder, its
                folder or its id, or None for a model of pixels.
            verify: whether to compare what came from the Hub with the Hub's hashes, where the package is installed.
            **kwargs: those of diffusers; for weights of others also what `dit_hf.conversion` takes.

        Raises:
            OSError: when the Hub or its cache cannot be used, or a file does not have the Hub's hash.
            ValueError: when a part is missing, or is damaged; for weights of others the message names the key.
        """
        source, load = pretrained_model_name_or_path, super().from_pretrained
        if not cls.__module__.startswith("dit_hf."):
            return load(source, **kwargs)
        load_pipeline = importlib.import_module("dit_hf.conversion").load_pipeline
        if Path(source).exists():
            return load_pipeline(cls, load, source, **kwargs)
        call = functools.partial(load_pipeline, cls, load, source, **kwargs)
        names = {"revision", "cache_dir", "local_files_only", "token"} & kwargs.keys()
        hub = {name: kwargs[name] for name in names if kwargs[name] is not None}
        load_from_hub = importlib.import_module("dit_hf.hub.load").load_from_hub
        pipeline = load_from_hub(str(source), call, **hub)
        importlib.import_module("dit_hf.hub.verify").check_cached(str(source), verify=verify, **hub)
        return pipeline

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, format: Literal["dit_hf", "diffusers"] = "dit_hf", **kwargs: Any
    ) -> None:
        """Write the pipeline's folder; diffusers' method.

        Args:
            save_directory: the folder.
            *args: as in diffusers' method.
            format: "dit_hf" loads with and without this package; "diffusers" is for diffusers' own `DiTPipeline`, which
                guides all channels, samples with DDIM, and cannot run every model.
            **kwargs: as in diffusers' method.

        Raises:
            ValueError: when the format is unknown, or diffusers' own pipeline cannot run this one.
        """
        if format not in ("dit_hf", "diffusers"):
            raise ValueError(f"format={format!r}: choose from dit_hf, diffusers")
        if getattr(self.transformer, "peft_config", None):
            raise ValueError(
                "an adapter is loaded: call fuse_lora() or unload_lora_weights() before saving the pipeline"
            )
        if kwargs.pop("push_to_hub", False):
            raise ValueError("push_to_hub=True would be public by default: call the method push_to_hub instead")
        if format == "dit_hf":
            return super().save_pretrained(save_directory, *args, **kwargs)
        try:
            conversion = importlib.import_module("dit_hf.conversion")
        except ImportError as error:
            raise ImportError("format='diffusers' needs the package: pip install dit-hf") from error
        conversion.save_for_diffusers(self, save_directory, *args, **kwargs)

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the index so that it loads with and without the package, and the code; `save_pretrained` ends so."""
        super().to_json_file(json_file_path)
        file = Path(json_file_path)
        ours = [cls.__name__ for cls in type(self).__mro__ if cls.__module__ == __name__]
        _update_json(file, _class_name=["pipeline_dit", ours[0]], transformer=["modeling_dit", "DiTModel"])
        model = getattr(self.transformer, "_orig_mod", self.transformer)  # a compiled model wraps the original
        model_class = next(cls for cls in type(model).__mro__ if cls.__name__ == "DiTModel")
        model_source = flat_source(Path(inspect.getfile(model_class)))
        # transformers looks for the model's code at the root, diffusers beside the weights
        for name in ("modeling_dit.py", "transformer/modeling_dit.py"):
            (file.parent / name).write_text(model_source, encoding="utf-8")
        (file.parent / "pipeline_dit.py").write_text(flat_source(Path(__file__)), encoding="utf-8")
        for name in ("configuration_dit.py", "transformer/configuration_dit.py"):  # of an older form
            (file.parent / name).unlink(missing_ok=True)
        for config_file in file.parent.glob("*/*config.json"):
            _update_json(config_file, **({"auto_map": AUTO_MAP} if config_file.parent.name == "transformer" else {}))

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        """Read the index so that the package's own classes are taken, never the code that lies beside the weights."""
        index = super()._dict_from_json_file(json_file, **kwargs)
        installed = cls.__module__.startswith("dit_hf.")  # else this file came as remote code, and so may the model
        if installed and index.get("transformer") == ["modeling_dit", "DiTModel"]:
            importlib.import_module("dit_hf.modeling_dit")  # diffusers takes classes from imported modules only
            index["_class_name"] = cls.__name__
            index["transformer"] = [cls._transformer_module, "DiTModel"]
        elif installed and cls._transformer_module != "transformers" and "diffusers" in index.get("transformer", []):
            index["transformer"] = [cls._transformer_module, "DiTModel"]  # `from_pretrained` converts it
        return index

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch a pipeline from the Hub, without its code where the package is installed; see diffusers' method."""
        # there diffusers knows libraries by a fixed list, and would look for any other in the repository
        downloading = type(cls.__name__, (cls,), {"__module__": cls.__module__, "_transformer_module": "transformers"})
        return super(DiTPipeline, downloading).download(pretrained_model_name, **kwargs)  # type: ignore[misc]

    def load_lora_weights(self, source: str | Path, **kwargs: Any) -> None:
        """Load a LoRA adapter, with the classes it was trained for; one at a time.

        Args:
            source: a folder or an id on the Hub, as a training with `lora_rank` writes it.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            ImportError: where this package or PEFT is not installed.
            ValueError: if the source is no adapter, or one of another model.
        """
        id2label = importlib.import_module("dit_hf.finetuning").load_lora(self.transformer, source, **kwargs)
        self.transformer._id2label_before_lora = self.config.id2label  # there, as pipelines may share it
        self.register_to_config(id2label=id2label)

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Add the adapter to the weights, at a strength of `lora_scale`; the pipeline saves as any other then.

        Raises:
            ValueError: if no adapter is loaded.
        """
        importlib.import_module("dit_hf.finetuning").merge_lora(self.transformer, lora_scale)

    def unload_lora_weights(self) -> None:
        """Take out an adapter that is not fused, and return to the classes before it."""
        if getattr(self.transformer, "peft_config", None):
            importlib.import_module("dit_hf.finetuning").remove_lora(self.transformer)
            self.register_to_config(id2label=getattr(self.transformer, "_id2label_before_lora", None))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
    ) -> Any:
        """Save the pipeline in a repository of the Hub, with its code and a model card; only what changed is sent.

        Args:
            repo_id: "user/name", created if it is not there.
            private: False for a repository that everybody sees; True refuses one that is public.
            revision: a branch, made from `main` if it is not there; None for `main`.
            commit_message: first line of the commit.
            create_pr: whether to open a pull request instead of committing.
            token: one with write access; the one of `hf auth login` or HF_TOKEN if not given.

        Returns:
            The commit, as `huggingface_hub.CommitInfo`.

        Raises:
            ImportError: where this file runs without the package.
            OSError: if the Hub cannot be used, in one line with the remedy.
            ValueError: if something would be sent or seen that should not.
        """
        try:
            push = importlib.import_module("dit_hf.hub.push")
        except ModuleNotFoundError as error:
            raise ImportError("push_to_hub needs the package dit-hf: install it and push again") from error
        options = {"revision": revision, "commit_message": commit_message, "create_pr": create_pr, "token": token}
        return push.push_pipeline(self, repo_id, private=private, **options)


class DiTImg2ImgPipeline(DiTPipeline):
    """Image to image: add noise to an image, and denoise it as another class, or the same (SDEdit, Meng et al. 2022).

    It takes the parts of `DiTPipeline`; `DiTImg2ImgPipeline.from_pipe(pipeline)` shares them.
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
            image: one, or one per image to make; scaled to the size that is made.
            class_labels: as in `DiTPipeline`, and so are the others.
            strength: share of the steps to take, in (0, 1]; at 1 little of the image remains.
            **arguments: those of `DiTPipeline`; `latents` is the noise that is added.

        Raises:
            ValueError: as in `DiTPipeline`.
            FloatingPointError: as in `DiTPipeline`.
        """
        return super().__call__(class_labels, _source=_Source(image, strength), **arguments)

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
            image: one, or one per label.
            class_labels: what the images are.
            num_inference_steps: the more, the smaller the error; pass the same number to make the image again.
            **arguments: those of `DiTPipeline`; guided only if guidance_scale is given.

        Raises:
            ValueError: as in `DiTPipeline`.
        """
        if _traits(self.scheduler).flow:
            raise ValueError(f"{type(self.scheduler).__name__} has no betas: DDIM inverts models with betas only")
        betas = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
        config = {name: self.scheduler.config.get(name) for name in (*betas, "num_train_timesteps", "prediction_type")}
        config["set_alpha_to_one"] = config["prediction_type"] != "sample"  # x_0 without noise says nothing of eps
        scheduler = DDIMInverseScheduler(**config, timestep_spacing="leading", clip_sample=False)
        inverse = DiTPipeline.from_pipe(self, scheduler=scheduler)
        inverse.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        labels = self._label_batch(class_labels, arguments.get("num_images_per_label", 1), arguments.get("num_images"))
        height, width, policy = (arguments.get(name) for name in ("height", "width", "position_policy"))
        shape, _ = self._size(len(labels), height, width, policy, None)  # (B, C, H, W)
        latents = self._encode(_Source(image, 1.0), shape).latents.expand(shape)
        arguments = {"num_inference_steps": num_inference_steps, "guidance_scale": 1.0, **arguments}
        return inverse(class_labels, latents=latents, output_type="latent", **arguments).images


class DiTInpaintPipeline(DiTPipeline):
    """Inpainting: draw a masked part of an image anew; every other pixel stays what it was, to the byte.

    What is known is put back after each step (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, without resampling). It
    takes the parts of `DiTPipeline`; `DiTInpaintPipeline.from_pipe(pipeline)` shares them.
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
            image: one, or one per image to make; scaled to the size that is made.
            mask_image: white (from 0.5 up) where something new is drawn; one, or one per image.
            class_labels: as in `DiTPipeline`, and so are the others.
            strength: share of the steps to take, in (0, 1]; below 1 what was under the mask shines through.
            **arguments: those of `DiTPipeline`; with output_type="latent" nothing is composited.

        Raises:
            ValueError: as in `DiTPipeline`.
            FloatingPointError: as in `DiTPipeline`.
        """
        return super().__call__(class_labels, _source=_Source(image, strength, mask_image), **arguments)


def _check_guidance_channels(guidance_channels: Any) -> None:
    if guidance_channels not in GUIDANCE_CHANNELS:
        raise ValueError(f"guidance_channels={guidance_channels!r}: choose from {', '.join(GUIDANCE_CHANNELS)}")


def _check_count(name: str, value: Any, limit: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        most = "" if limit == math.inf else f" and at most {limit}"
        raise ValueError(f"{name}={value!r}: pass a whole number of at least 1{most}")


def _check_vae(vae: Any, in_channels: int) -> None:
    channels, factor = vae.latent_channels, vae.get("scaling_factor")
    if channels != in_channels:
        raise ValueError(f"the VAE has latent_channels={channels}, the model in_channels={in_channels}: unequal")
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ValueError(f"the VAE has scaling_factor={factor!r}: set a positive number, 1 over its latents' deviation")
    for name in ("latents_mean", "latents_std"):
        if vae.get(name) and len(vae[name]) != channels:
            raise ValueError(f"the VAE has {len(vae[name])} numbers in {name} for {channels} latent channels")


def _check_guide(weak: Any, config: Any) -> None:
    for name in ("model_type", "in_channels", "sample_size", "num_classes"):
        if getattr(weak, name, None) != getattr(config, name):
            raise ValueError(
                f"guide_model has {name}={getattr(weak, name, None)!r}, the transformer {getattr(config, name)!r}: "
                "they must be equal"
            )


def _check_interval(interval: Any, unit: str) -> None:
    if unit not in ("steps", "sigma"):
        raise ValueError(f"guidance_interval_unit={unit!r}: choose from steps, sigma")
    if interval is None:
        return
    most = 1 if unit == "steps" else math.inf
    ok = isinstance(interval, (tuple, list)) and len(interval) == 2 and all(isinstance(end, Real) for end in interval)
    if not (ok and 0 <= interval[0] < interval[1] <= most):
        raise ValueError(f"guidance_interval={interval!r}: pass (low, high) with 0 <= low < high <= {most}, in {unit}")


def _falling(name: str, values: Any, convert: Callable, least: float, most: float) -> list:
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        falling = [convert(value) for value in values]
    except TypeError as error:
        raise ValueError(f"{name}={values!r}: pass a list of numbers") from error
    inside = all(least <= value <= most and value < math.inf for value in falling)
    if not falling or not inside or any(a <= b for a, b in zip(falling, falling[1:], strict=False)):
        raise ValueError(f"{name}={values!r}: pass falling numbers in {least:g}..{most:g}, at least one")
    return falling


def _update_json(file: Path, **fields: Any) -> None:
    content = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    content.pop("_name_or_path", None)  # where something was loaded from is nobody's business
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
