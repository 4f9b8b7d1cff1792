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
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

logger = logging.get_logger(__name__)

# How many channels of epsilon guidance moves; None is all. The published numbers of DiT guide the first three of four.
GUIDANCE_CHANNELS: dict[str, int | None] = {"first_three": 3, "all": None}


class SchedulerTraits(NamedTuple):
    """What sampling has to know of a scheduler beyond its interface."""

    num_steps: int  # the usual number of steps
    learned_variance: Literal["used", "ignored", "refused"]  # for variance_type "learned" and "learned_range"
    steps_by_ratio: bool = False  # its previous timestep is t - T // num_steps whatever the spacing
    flow: bool = False  # flow matching: no betas, no field prediction_type


SCHEDULERS: dict[str, SchedulerTraits] = {
    "DDPMScheduler": SchedulerTraits(250, "used"),
    "DDIMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True),
    "PNDMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True),
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


def _traits(scheduler: SchedulerMixin) -> SchedulerTraits:
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


def guide(cond: Tensor, uncond: Tensor, scale: float, num_channels: int) -> Tensor:
    """Move the first channels away from the unconditional answer (Ho & Salimans 2022, arXiv 2207.12598, eq. 6)."""
    guided = uncond[:, :num_channels] + scale * (cond[:, :num_channels] - uncond[:, :num_channels])
    return torch.cat([guided, cond[:, num_channels:]], dim=1)  # (B, C or 2C, H, W)


def names_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name to the classes that have it; "tench, Tinca tinca" are two names of one class."""
    names: dict[str, list[int]] = {}
    for label_id, label in id2label.items():
        for name in dict.fromkeys(part.strip() for part in label.split(",")):
            names.setdefault(name, []).append(label_id)
    return dict(sorted(names.items()))


AUTO_MAP = {"AutoConfig": "configuration_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}
# The model travels twice: as two files at the root, where transformers looks for code, and as one file beside its
# weights, the only one that diffusers fetches. There the configuration is pasted over the import, between two marks.
CONFIGURATION_IMPORT = re.compile(r"^from \.configuration_dit import [^(\n]+$", re.MULTILINE)
PASTED = re.compile(r"^# >>> configuration_dit\.py, for: ([^\n]+)\n(.*?)^# <<< configuration_dit\.py$", re.M | re.S)


def model_sources(model: PreTrainedModel) -> dict[str, str]:
    """Read a model's code, from a package or from either form on the Hub, as the three files that travel."""
    file = Path(inspect.getfile(type(model)))
    source = file.read_text(encoding="utf-8")
    pasted = PASTED.search(source)
    if pasted:
        configuration, modeling = pasted[2], PASTED.sub(lambda match: match[1], source)
    else:
        configuration, modeling = file.with_name("configuration_dit.py").read_text(encoding="utf-8"), source
    assert len(CONFIGURATION_IMPORT.findall(modeling)) == 1, f"{file} imports its configuration in one line, once"
    begin, end = "# >>> configuration_dit.py, for: ", "# <<< configuration_dit.py"
    one_file = CONFIGURATION_IMPORT.sub(lambda match: f"{begin}{match[0]}\n{configuration}{end}", modeling)
    return {"configuration_dit.py": configuration, "modeling_dit.py": modeling, "transformer/modeling_dit.py": one_file}


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

    # What bounds the memory, on any pipeline: bytes of precomputed modulations, and images decoded at once.
    conditioning_bytes = 2**29
    decode_batch_size = 16

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
        if vae is not None and vae.config.latent_channels != config.in_channels:
            channels = f"latent_channels={vae.config.latent_channels} and in_channels={config.in_channels}"
            raise ValueError(f"VAE and transformer have {channels}: they must be equal")
        if vae is not None and scheduler.config.get("clip_sample"):
            logger.warning("The scheduler has clip_sample=True, which clips latents at +-1: set it to False.")
        _check_guidance_channels(guidance_channels)
        prediction_type = _check_prediction(scheduler, prediction_type)
        _takes_variance(scheduler, config.learn_sigma)
        id2label = {int(label_id): str(label) for label_id, label in (id2label or {}).items()}
        outside = [label_id for label_id in id2label if not 0 <= label_id < config.num_classes]
        if outside:
            raise ValueError(f"id2label has the id {outside[0]}, the transformer the ids 0..{config.num_classes - 1}")
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(
            id2label=id2label or None, guidance_channels=guidance_channels, prediction_type=prediction_type
        )
        self.image_processor = VaeImageProcessor()

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
        guidance_scale: float = 4.0,
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
    ) -> ImagePipelineOutput | tuple:
        """Generate images of the given classes.

        Args:
            class_labels: an id or a name, or a list in which both may stand; None for an unconditional model.
            guidance_scale: strength of classifier-free guidance; at 1 and below there is none, and no second pass.
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

        Raises:
            ValueError: for an argument outside its limits, before any work.
            FloatingPointError: when latents or images stop being finite; it names the step.

        Source: Peebles & Xie 2022 (arXiv 2212.09748), sections 3.1 and 4.
        """
        labels = self._label_batch(class_labels, num_images_per_label, num_images)
        num_channels = self._num_guided_channels(guidance_scale, guidance_channels)
        config, device = self.transformer.config, self._execution_device
        shape = (len(labels), config.in_channels, *config.sample_height_width)  # (B, C, H, W)
        self._check_call(shape, generator, latents, output_type)
        generator = list(generator) if isinstance(generator, tuple) else generator
        step_kwargs = self._step_kwargs(generator, eta)
        _check_interval(guidance_interval, guidance_interval_unit)
        ts = self._set_timesteps(num_inference_steps, timesteps, sigmas)  # (T,), in host memory
        guided = self._guided_steps(ts, guidance_interval, guidance_interval_unit)
        if latents is None:
            latents = randn_tensor(shape, generator, device, torch.float32)
        # float32 whatever the model computes in; flow matching schedulers start at scale 1 and have no such field
        latents = latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        guided = [within and num_channels > 0 for within in guided]
        conditionings = self._conditionings(self.transformer, ts, labels, guided)
        first_bad = torch.full((), len(ts), device=device)
        for step, (t, conditioning) in enumerate(zip(self.progress_bar(ts), conditionings, strict=True)):
            answer = self._denoise(latents, t, conditioning, guidance_scale, num_channels * guided[step])
            latents = self.scheduler.step(answer, t, latents, **step_kwargs).prev_sample  # (B, C, H, W)
            # kept on the device, so that the loop never waits for it
            first_bad = torch.where(torch.isfinite(latents).all(), first_bad, first_bad.clamp(max=step))
            if callback_on_step_end is not None:
                latents = (callback_on_step_end(self, step, t, {"latents": latents}) or {}).get("latents", latents)
        if first_bad < len(ts):
            raise FloatingPointError(
                f"latents are not finite after step {first_bad} (t = {ts[first_bad]:g}): lower "
                "guidance_scale, use bfloat16 or float32, or look at the weights"
            )
        images = latents if output_type == "latent" else self._decode(latents, output_type)
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

    def _num_guided_channels(self, guidance_scale: float, guidance_channels: str | None) -> int:
        """How many channels of epsilon are guided, 0 without guidance."""
        config = self.transformer.config
        if not isinstance(guidance_scale, Real) or not 0 <= guidance_scale < math.inf:
            raise ValueError(f"guidance_scale={guidance_scale!r}: pass a finite number from 0 on; 1 is no guidance")
        guidance_channels = guidance_channels or self.config.guidance_channels
        _check_guidance_channels(guidance_channels)
        if guidance_scale <= 1:
            return 0
        if not config.has_null_class:
            raise ValueError(
                f"guidance_scale={guidance_scale}: a model with num_classes={config.num_classes} and "
                f"class_dropout_prob={config.class_dropout_prob} has no null class to guide with: pass guidance_scale=1"
            )
        return min(GUIDANCE_CHANNELS[guidance_channels] or config.in_channels, config.in_channels)

    def _check_call(self, shape: tuple, generator: Any, latents: Any, output_type: str) -> None:
        _check_prediction(self.scheduler, self.config.prediction_type)
        _takes_variance(self.scheduler, self.transformer.config.learn_sigma)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r}: choose from pil, np, pt, latent")
        if isinstance(generator, (list, tuple)) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} images: pass one, or one per image")
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, these images need {shape}")

    def _set_timesteps(self, num_steps: int | None, timesteps: Any, sigmas: Any) -> Tensor:
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
        return self.scheduler.timesteps

    def _guided_steps(self, ts: Tensor, interval: tuple[float, float] | None, unit: str) -> list[bool]:
        """Which evaluations are guided (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""
        if interval is None:
            return [True] * len(ts)
        if unit == "steps":
            return [interval[0] <= step / len(ts) < interval[1] for step in range(len(ts))]
        return [interval[0] < sigma <= interval[1] for sigma in self._noise_levels(ts)]

    def _noise_levels(self, ts: Tensor) -> np.ndarray:
        """The deviation of noise added to x_0 at each timestep; in flow matching t of (1 - t) x_0 + t noise."""
        if _check_prediction(self.scheduler, self.config.prediction_type) == "flow_prediction":
            return ts.numpy() / self.scheduler.config.num_train_timesteps
        log_alpha_bar = self.scheduler.alphas_cumprod.double().log().numpy()
        return np.sqrt(np.expm1(-np.interp(ts.numpy(), np.arange(len(log_alpha_bar)), log_alpha_bar)))

    def _step_kwargs(self, generator: Any, eta: float) -> dict[str, Any]:
        parameters = inspect.signature(self.scheduler.step).parameters
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} is outside [0, 1]: 0 is deterministic, 1 draws as much noise as DDPM")
        if eta and "eta" not in parameters:
            raise ValueError(f"eta={eta}: {type(self.scheduler).__name__} has none, leave it at 0 or use DDIMScheduler")
        return {name: value for name, value in {"generator": generator, "eta": eta}.items() if name in parameters}

    def _conditionings(
        self, model: PreTrainedModel, ts: Tensor, labels: Sequence[int | None], guided: list[bool]
    ) -> Iterator[Any]:
        """For each step what the model derives from its timestep and labels, where guided for twice the batch.

        It is computed once for each timestep and distinct label, for as many steps at once as memory allows, so that
        the loop reads none of the parameters that serve it: a third of the model in adaLN-Zero.
        """
        config, device = model.config, self._execution_device
        distinct = [*dict.fromkeys(labels), *([config.null_class_id] if any(guided) else [])]  # L labels
        plain = torch.tensor([distinct.index(label) for label in labels], device=device)  # (B,)
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
            if hasattr(model, "_hf_hook"):  # an offloaded model: only its forward would bring it back by itself
                model._hf_hook.pre_forward(model)
            table = model.condition(**arguments)  # (W L, ...)
            for step in range(len(t)):
                rows = (both if guided[begin + step] else plain) + step * len(distinct)
                # copies, not views: a compiled model would be compiled again for a view's offset
                blocks = tuple(None if block is None else block[rows] for block in table.blocks)
                final = None if table.final is None else table.final[rows]
                yield table._replace(embedding=table.embedding[rows], blocks=blocks, final=final)

    def _denoise(self, latents: Tensor, t: Tensor, conditioning: Any, scale: float, num_channels: int) -> Tensor:
        """What the scheduler's step takes: guided epsilon, with the variance where it uses one; float32."""
        x = latents  # the scheduler's step takes these, unscaled
        if hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        if num_channels:
            x = torch.cat([x, x])  # (2B, C, H, W)
        model = self.transformer
        answer = model(x.to(model.dtype), conditioning=conditioning).sample.float()
        if num_channels:
            cond, uncond = answer.chunk(2)  # (B, C or 2C, H, W)
            answer = guide(cond, uncond, scale, num_channels)
        return answer if _takes_variance(self.scheduler, model.config.learn_sigma) else answer[:, : latents.shape[1]]

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        """Undo the latents' scaling, decode, and convert as diffusers does."""
        if self.vae is None:
            return self.image_processor.postprocess(latents, output_type)
        config, dtype = self.vae.config, self.vae.dtype
        std, mean = (
            latents.new_tensor(config.get(name) or [default]).view(1, -1, 1, 1)
            for name, default in (("latents_std", 1.0), ("latents_mean", 0.0))
        )
        latents = latents * std / config.scaling_factor + mean + (config.get("shift_factor") or 0.0)
        overflows = dtype == torch.float16 and config.get("force_upcast")  # the VAE says so itself
        if overflows:
            self.vae.to(torch.float32)
        chunks = latents.to(self.vae.dtype).split(self.decode_batch_size)
        images = torch.cat([self.vae.decode(chunk).sample.float() for chunk in chunks])  # (B, 3, height, width)
        if overflows:
            self.vae.to(dtype)
        if not torch.isfinite(images).all():
            raise FloatingPointError(f"the VAE's images are not finite in {dtype}: decode in float32, pipe.vae.float()")
        return self.image_processor.postprocess(images, output_type)

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
        load_from_hub = importlib.import_module("dit_hf.hub.errors").load_from_hub
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
        sources = {"pipeline_dit.py": Path(__file__).read_text(encoding="utf-8"), **model_sources(model)}
        (file.parent / "transformer").mkdir(exist_ok=True)
        for name, source in sources.items():
            (file.parent / name).write_text(source, encoding="utf-8")
        # transformers puts this one there for a model that it loaded as remote code
        (file.parent / "transformer" / "configuration_dit.py").unlink(missing_ok=True)
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
        self._id2label_before_lora = self.config.id2label
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
            self.register_to_config(id2label=self._id2label_before_lora)

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


def _check_guidance_channels(guidance_channels: Any) -> None:
    if guidance_channels not in GUIDANCE_CHANNELS:
        raise ValueError(f"guidance_channels={guidance_channels!r}: choose from {', '.join(GUIDANCE_CHANNELS)}")


def _check_count(name: str, value: Any, limit: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        most = "" if limit == math.inf else f" and at most {limit}"
        raise ValueError(f"{name}={value!r}: pass a whole number of at least 1{most}")


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
