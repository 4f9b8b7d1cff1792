"""Loading whole pipelines of every form: this project's, diffusers', and an original checkpoint with a VAE.

The pipeline's class is handed in: its `from_pretrained` calls `load_pipeline`.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers.utils import logging

from ..configuration_dit import DiTConfig
from ..places import check_model_source, places_to_look
from ..sampling.defaults import PIPELINE_SETTINGS
from ..vae import vae_subfolder
from .diffusers_files import HUB_ARGUMENTS, read_json
from .diffusers_format import DIFFUSERS_NUMBERS, KEPT_BY_MODEL, TRAINED_AS, from_diffusers
from .flow_weights import NUM_TRAIN_TIMESTEPS, training_of
from .imagenet_names import imagenet_names
from .original import from_original
from .schedulers import make_flow_scheduler, make_scheduler

logger = logging.get_logger(__name__)

NUM_IMAGENET_CLASSES = 1000  # of the published checkpoints, and of the original code unless told otherwise
CONFIG_FIELDS = inspect.signature(DiTConfig).parameters.keys() - {"kwargs"}
CHECKPOINT_ARGUMENTS = CONFIG_FIELDS | {
    "weights",
    "ignore",
    "any_objective",
    "trained_as",
}  # what `from_original` takes
DTYPE_ARGUMENTS = ("dtype", "torch_dtype")
# Arguments of diffusers' `from_pretrained` that a checkpoint, being one file, has no use for.
UNUSED_BY_CHECKPOINTS = {*HUB_ARGUMENTS, *DTYPE_ARGUMENTS, "device_map", "variant", "use_safetensors"}


def load_pipeline(
    cls: type[DiffusionPipeline], load: Callable[..., Any], source: str | os.PathLike, **arguments: Any
) -> DiffusionPipeline:
    """Load a pipeline from this project's form, from diffusers' form, or from an original checkpoint.

    Args:
        cls: Class of the pipeline.
        load: The class's inherited `from_pretrained`.
        source: Folder, id on the Hub, or file of a checkpoint.
        **arguments: Arguments of diffusers' `from_pretrained`; for a checkpoint also those of `from_original`, for
            diffusers' form `timestep_freq_shift` and `mlp_norm_eps`.

    Raises:
        ValueError: If a part is missing or damaged, or if an argument has no meaning for the source.
    """
    vae = arguments.get("vae")
    pipeline = _load_any_form(cls, load, source, **arguments)
    if vae is None or isinstance(vae, str | os.PathLike):  # else the caller loaded it
        _check_vae(pipeline.vae, vae or source)
    return pipeline


def library_of_transformer(source: str | os.PathLike, **hub: Any) -> Any:
    """Return the library that a pipeline's index names for the transformer: "diffusers" in diffusers' form."""
    index = DiffusionPipeline.load_config(source, **hub)
    entry = index.get("transformer")
    return entry[0] if isinstance(entry, list | tuple) and entry else None


def _load_any_form(cls: Any, load: Callable[..., Any], source: str | os.PathLike, **arguments: Any) -> Any:
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    if isinstance(arguments.get("vae"), str | os.PathLike):
        arguments["vae"] = _load_vae(arguments, hub)
    if Path(source).is_file():
        return _load_checkpoint(cls, Path(source), **arguments)
    if "transformer" in arguments or library_of_transformer(source, **hub) != "diffusers":
        for name in sorted(arguments.keys() & CHECKPOINT_ARGUMENTS):
            raise ValueError(f"{name}={arguments[name]!r}: the pipeline in {source} says it already")
        return load(source, **arguments)
    return _load_diffusers_form(cls, load, source, hub, arguments)


def _load_vae(arguments: dict[str, Any], hub: dict[str, Any]) -> Any:
    placing = {name: _dtype_of("vae", arguments[name]) for name in DTYPE_ARGUMENTS if name in arguments}
    placing |= {name: arguments[name] for name in ("device_map",) if name in arguments}
    hub = {name: value for name, value in hub.items() if name != "revision"}  # a revision of the source, not of the VAE
    name = str(arguments["vae"])
    check_model_source(name, vae_subfolder(name), **places_to_look(hub))
    return AutoencoderKL.from_pretrained(name, subfolder=vae_subfolder(name), **hub, **placing)


def _load_diffusers_form(
    cls: Any, load: Callable[..., Any], source: str | os.PathLike, hub: dict[str, Any], arguments: dict[str, Any]
) -> Any:
    files = {name: arguments[name] for name in ("variant", "use_safetensors") if name in arguments}
    folder = Path(source) if os.path.isdir(source) else Path(cls.download(str(source), **hub, **files))
    numbers = {name: arguments.pop(name) for name in DIFFUSERS_NUMBERS if name in arguments}
    model = from_diffusers(folder, subfolder="transformer", **numbers, **files)
    written = read_json(folder / "transformer" / "config.json").get(TRAINED_AS)
    # weights trained by the original come without `TRAINED_AS`; their published numbers guide three channels
    is_original = written is None and model.config.timestep_freq_shift == 0
    own = {"guidance_channels": "first_three" if is_original else "all"}
    if isinstance(written, dict):
        own |= {name: written[name] for name in KEPT_BY_MODEL if written.get(name) is not None}
    arguments = {**own, **arguments}
    model = _placed(model, arguments)
    pipeline = load(folder, transformer=model, **{k: v for k, v in arguments.items() if k not in hub})
    pipeline.register_to_config(_name_or_path=str(source))
    return pipeline


def _load_checkpoint(cls: Any, path: Path, **arguments: Any) -> Any:
    if "vae" not in arguments:
        raise ValueError(
            f"{path.name} holds a transformer only: name its autoencoder by folder or id, as in "
            "vae='stabilityai/sd-vae-ft-ema', or pass vae=None for a model of pixels"
        )
    of_model = {name: arguments.pop(name) for name in CHECKPOINT_ARGUMENTS & arguments.keys()}
    of_pipeline = {name: arguments.pop(name) for name in PIPELINE_SETTINGS if name in arguments}
    vae, scheduler = arguments.pop("vae"), arguments.pop("scheduler", None)
    for name in sorted(arguments.keys() - UNUSED_BY_CHECKPOINTS):
        raise ValueError(f"{name!r} has no meaning for a checkpoint of the original")
    model = _placed(from_original(path, **of_model), arguments)
    if training_of(model.config):
        of_pipeline.setdefault("prediction_type", "flow_prediction")
        if scheduler is None or isinstance(scheduler, str):
            scheduler = make_flow_scheduler(scheduler or "FlowMatchEulerDiscreteScheduler", NUM_TRAIN_TIMESTEPS)
    elif scheduler is None or isinstance(scheduler, str):
        scheduler = make_scheduler(scheduler or "DDPMScheduler", model.config.learn_sigma)
    if model.config.num_classes == NUM_IMAGENET_CLASSES and "id2label" not in of_pipeline:
        logger.info(f"{path.name}: its 1000 classes are taken for ImageNet's and named so; id2label={{}} names none")
        of_pipeline["id2label"] = imagenet_names()
    return cls(model, vae, scheduler, **{"guidance_channels": "first_three", **of_pipeline})


def _dtype_of(part: str, dtype: Any) -> Any:
    return dtype.get(part, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype


def _placed(model: Any, arguments: dict[str, Any]) -> Any:
    """Bring the model to the precision and the device that the other parts of the pipeline are loaded to."""
    device = arguments.get("device_map")
    if device == "balanced":
        raise ValueError("device_map='balanced' needs this project's form: save the pipeline first, or name a device")
    dtype = _dtype_of("transformer", arguments.get("dtype") or arguments.get("torch_dtype"))
    return model.to(device=device, dtype=dtype)


def _check_vae(vae: Any, source: str | os.PathLike) -> None:
    """Refuse an autoencoder that is not whole, which diffusers loads with a warning at most."""
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
