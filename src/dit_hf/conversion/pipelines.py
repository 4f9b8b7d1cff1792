"""Whole pipelines from what is out there, and back: the original's checkpoint, and diffusers' folder for its own class.

The pipeline's class is handed in; it calls these from `from_pretrained` and `save_pretrained`.
"""

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from transformers.utils import logging

from ..betas import BETA_FIELDS, PAPER_BETAS
from ..configuration_dit import DiTConfig
from .diffusers_format import HUB_ARGUMENTS, THEIRS, TRAINED_AS, from_diffusers, read_json, to_diffusers
from .original import from_original

logger = logging.get_logger(__name__)

# What DiT needs of a scheduler beside its betas, where that is not the scheduler's default.
TRAITS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"clip_sample": False, "timestep_spacing": "linspace", "variance_type": "learned_range"},
    "DDIMScheduler": {"clip_sample": False, "timestep_spacing": "leading"},
}
TRAINED_WITH = (*BETA_FIELDS, "num_train_timesteps", "prediction_type")
CONFIG_FIELDS = inspect.signature(DiTConfig).parameters.keys() - {"kwargs"}
STOCK_NULL_CLASS = 1000  # written into diffusers' pipeline


def scheduler_of(name: str, learn_sigma: bool, like: Any = None) -> Any:
    """The scheduler of diffusers with this name, as a DiT needs it.

    Args:
        name: Of the class.
        learn_sigma: Whether the model has a variance to use.
        like: The scheduler whose betas and kind of prediction it takes over; None for the original's linear betas.

    Raises:
        ValueError: If diffusers has no such scheduler, or it cannot have the betas of the other.
    """
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    parameters = {} if cls is None else inspect.signature(cls).parameters
    if cls is None or "beta_start" not in parameters:
        raise ValueError(
            f"{name!r} is no scheduler of diffusers with betas: choose DDPMScheduler, DDIMScheduler or the like"
        )
    traits = dict(TRAITS.get(name, {}))
    if not learn_sigma and "variance_type" in traits:
        traits["variance_type"] = "fixed_small"
    trained_with = {} if like is None else {key: like.config[key] for key in TRAINED_WITH if key in like.config}
    if lost := [key for key, value in trained_with.items() if value and key not in parameters]:
        raise ValueError(
            f"{name} has no {lost[0]}, and the model was trained with {trained_with[lost[0]]!r}: choose DDIMScheduler"
        )
    kept = {key: value for key, value in trained_with.items() if key in parameters}
    return cls(**{**PAPER_BETAS, **traits, **kept})


def load_pipeline(
    cls: type[DiffusionPipeline], load: Callable[..., Any], source: str | os.PathLike, **arguments: Any
) -> Any:
    """Load a pipeline from this project's form, from diffusers' form, or from an original checkpoint.

    Args:
        cls: The pipeline's class.
        load: Its inherited `from_pretrained`.
        source: A folder, an id on the Hub, or the file of a checkpoint.
        **arguments: Those of diffusers' `from_pretrained`; for a checkpoint also `weights` and fields of `DiTConfig`,
            for diffusers' form `timestep_freq_shift` and `mlp_norm_eps`.

    Raises:
        ValueError: If a part is missing or damaged, or an argument has no meaning for the source.
    """
    given = arguments.get("vae")
    pipeline = _load_any_form(cls, load, source, **arguments)
    if given is None or isinstance(given, str | os.PathLike):  # else the caller loaded it
        _check_vae(pipeline.vae, given or source)
    return pipeline


def _load_any_form(cls: Any, load: Callable[..., Any], source: str | os.PathLike, **arguments: Any) -> Any:
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    if isinstance(arguments.get("vae"), str | os.PathLike):
        placing = {name: arguments[name] for name in ("dtype", "torch_dtype", "device_map") if name in arguments}
        for name in placing.keys() - {"device_map"}:
            placing[name] = _dtype_of("vae", placing[name])
        elsewhere = {name: value for name, value in hub.items() if name != "revision"}  # which is the source's
        arguments["vae"] = AutoencoderKL.from_pretrained(arguments["vae"], **elsewhere, **placing)
    if Path(source).is_file():
        return _load_checkpoint(cls, Path(source), **arguments)
    if "transformer" in arguments or library_of_transformer(source, **hub) != "diffusers":
        foreign = sorted(arguments.keys() & (CONFIG_FIELDS | {"weights"}))
        if foreign:
            raise ValueError(f"{foreign[0]}={arguments[foreign[0]]!r}: the pipeline in {source} says it already")
        return load(source, **arguments)
    return _load_diffusers_form(cls, load, source, hub, arguments)


def _check_vae(vae: Any, source: str | os.PathLike) -> None:
    """Refuse an autoencoder that is not whole, which diffusers loads with a warning or without a word."""
    weights = dict(vae.named_parameters()) if vae is not None else {}
    faults = {
        "missing": [key for key, weight in weights.items() if weight.is_meta],
        "not finite": [key for key, weight in weights.items() if not (weight.is_meta or weight.isfinite().all())],
    }
    for fault, keys in faults.items():
        if keys:
            first = f"{', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
            raise ValueError(
                f"the vae of {source}: {len(keys)} weights are {fault}: {first}. Fetch it again, or pass another vae"
            )


def library_of_transformer(source: str | os.PathLike, **hub: Any) -> Any:
    """The library that a pipeline's index names for the transformer's class: "diffusers" in diffusers' form."""
    index = DiffusionPipeline.load_config(source, **hub)
    entry = index.get("transformer")
    return entry[0] if isinstance(entry, list | tuple) and entry else None


def _load_diffusers_form(
    cls: Any, load: Callable[..., Any], source: str | os.PathLike, hub: dict[str, Any], arguments: dict[str, Any]
) -> Any:
    files = {name: arguments[name] for name in ("variant", "use_safetensors") if name in arguments}
    folder = Path(source) if os.path.isdir(source) else Path(cls.download(str(source), **hub, **files))
    numbers = {name: arguments.pop(name) for name in THEIRS if name in arguments}
    model = from_diffusers(folder, subfolder="transformer", **numbers, **files)
    config = read_json(folder / "transformer" / "config.json")
    # weights trained by the original come without our note; their published numbers guide three channels
    original = TRAINED_AS not in config and model.config.timestep_freq_shift == 0
    note = config.get(TRAINED_AS)
    noted = note if isinstance(note, dict) else {}
    arguments.setdefault("guidance_channels", noted.get("guidance_channels", "first_three" if original else "all"))
    model = _placed(model, arguments)
    pipeline = load(folder, transformer=model, **{k: v for k, v in arguments.items() if k not in hub})
    pipeline.register_to_config(_name_or_path=str(source))
    return pipeline


def _dtype_of(part: str, dtype: Any) -> Any:
    return dtype.get(part, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype


def _placed(model: Any, arguments: dict[str, Any]) -> Any:
    """The model in the precision and on the device that the other parts of the pipeline are loaded to."""
    device = arguments.get("device_map")
    if device == "balanced":
        raise ValueError("device_map='balanced' needs this project's form: save the pipeline first, or name a device")
    dtype = _dtype_of("transformer", arguments.get("dtype") or arguments.get("torch_dtype"))
    return model.to(device=device, dtype=dtype)


def _load_checkpoint(cls: Any, path: Path, **arguments: Any) -> Any:
    if "vae" not in arguments:
        raise ValueError(
            f"{path.name} holds a transformer only: pass vae=AutoencoderKL.from_pretrained(...), or its folder or id, "
            "or vae=None for a model of pixels"
        )
    fields = {name: arguments.pop(name) for name in (*CONFIG_FIELDS, "weights") if name in arguments}
    parts = {
        name: arguments.pop(name) for name in ("id2label", "guidance_channels", "prediction_type") if name in arguments
    }
    vae, scheduler = arguments.pop("vae"), arguments.pop("scheduler", None)
    unknown = arguments.keys() - {*HUB_ARGUMENTS, "dtype", "torch_dtype", "device_map", "variant", "use_safetensors"}
    if unknown:
        raise ValueError(f"{min(unknown)!r} has no meaning for a checkpoint of the original")
    model = _placed(from_original(path, **fields), arguments)
    if scheduler is None or isinstance(scheduler, str):
        scheduler = scheduler_of(scheduler or "DDPMScheduler", model.config.learn_sigma)
    return cls(model, vae, scheduler, **{"guidance_channels": "first_three", **parts})


def save_for_diffusers(pipeline: Any, folder: str | os.PathLike, *options: Any, **arguments: Any) -> None:
    """Write a pipeline so that diffusers' own `DiTPipeline` loads it, without this package.

    That pipeline has a deterministic DDIM here, guides all channels and divides the frequencies by 127: where this
    pipeline does otherwise, warnings say so, with the size of the deviation. It drops the learned variance.

    Args:
        pipeline: A `DiTPipeline`.
        folder: Where to write it.
        *options: Those of diffusers' `save_pretrained`.
        **arguments: The same.

    Raises:
        ValueError: If the stock pipeline cannot run it; the message names the field.
    """
    _check_stock(pipeline)
    scheduler = scheduler_of("DDIMScheduler", learn_sigma=False, like=pipeline.scheduler)
    if not isinstance(pipeline.scheduler, DDIMScheduler):
        logger.warning(
            f"diffusers' pipeline gets a deterministic DDIMScheduler in place of {type(pipeline.scheduler).__name__}."
        )
    channels = pipeline.config.guidance_channels
    if channels != "all":
        logger.warning(f"diffusers' pipeline guides all channels, this one has guidance_channels={channels!r}.")
    model = to_diffusers(pipeline.transformer)
    model.register_to_config(**{TRAINED_AS: {**model.config[TRAINED_AS], "guidance_channels": channels}})
    stock = diffusers.DiTPipeline(transformer=model, vae=pipeline.vae, scheduler=scheduler)
    if pipeline.config.id2label:
        stock.register_to_config(id2label=pipeline.config.id2label)  # which it takes, and does not keep
    stock.save_pretrained(folder, *options, **arguments)
    for file in [Path(folder, "model_index.json"), *Path(folder).glob("*/*config.json")]:
        content = read_json(file)
        if content.pop("_name_or_path", None):  # where something was loaded from is nobody's business
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_stock(pipeline: Any) -> None:
    config, vae, scheduler = pipeline.transformer.config, pipeline.vae, pipeline.scheduler
    if config.num_classes != STOCK_NULL_CLASS:
        raise ValueError(
            f"num_classes={config.num_classes}: diffusers' pipeline takes {STOCK_NULL_CLASS} for the null class, so it "
            f"guides models of {STOCK_NULL_CLASS} classes only"
        )
    if pipeline.config.prediction_type == "flow_prediction":
        raise ValueError("prediction_type='flow_prediction': diffusers' pipeline gets a DDIMScheduler, which has betas")
    # other classes keep the field of a configuration that they were made from, and do not read it
    reads_variance = "variance_type" in inspect.signature(type(scheduler)).parameters
    if reads_variance and scheduler.config.variance_type in ("learned", "learned_range"):
        raise ValueError(
            f"{type(scheduler).__name__} with variance_type={scheduler.config.variance_type!r}: diffusers' pipeline "
            "drops the learned variance, use a DDIMScheduler, in `dit-hf convert` by --scheduler DDIMScheduler"
        )
    if vae is None:
        raise ValueError("vae=None: diffusers' pipeline always decodes latents")
    unread = [name for name in ("shift_factor", "latents_mean", "latents_std") if vae.config.get(name)]
    if unread:
        raise ValueError(
            f"{unread[0]}={vae.config[unread[0]]}: diffusers' pipeline reads the VAE's scaling_factor only"
        )
