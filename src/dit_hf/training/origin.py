"""The model that a fine-tuning starts from, and what it decides: VAE, objective, noise schedule and resolution.

A network can only go on learning what it was trained for. So the settings that describe the training of `init_from`
come from there, and a value of the user's that contradicts it is an error. Example: a model that predicts x_0 on a
cosine schedule goes on with `objective="sample"` and `beta_schedule="squaredcos_cap_v2"`, whatever the defaults are.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from ..configuration_dit import DiTConfig, PaperSize
from ..conversion import from_original
from ..conversion.flow_weights import NUM_TRAIN_TIMESTEPS, training_of
from ..conversion.schedulers import flow_shift
from ..diffusion import OBJECTIVES, FlowLoss, Schedule
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline
from ..places import check_model_source, check_pipeline_source
from ..vae import vae_shrink_factor, vae_subfolder
from .settings import TrainSettings, rows

logger = logging.getLogger("dit_hf.finetuning")

FLOW = {each.prediction_type for each in OBJECTIVES.values() if issubclass(each, FlowLoss)}
LATENT_FIELDS = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")


@dataclass
class Origin:
    """A trained model, and what is known of its training.

    Args:
        name: Folder, file or id that the user gave.
        model: Model with its weights.
        id2label: Names of its classes; None if they are unknown.
        trained: Prediction type and fields of the noise schedule, by name; empty if they are unknown.
        vae: Configuration of the VAE that made its latents; None if it is unknown.
        timestep_shift: Shift of the timesteps of flow matching that it was trained and is sampled with.
    """

    name: str
    model: DiTModel
    id2label: dict[int, str] | None
    trained: dict[str, Any]
    vae: dict[str, Any] | None = None
    timestep_shift: float = 1.0

    @property
    def objective(self) -> str | None:
        """Name of the objective that trained the model; None if it is unknown."""
        learns_variance = self.model.config.learn_sigma
        fitting = {name: each for name, each in OBJECTIVES.items() if each.learns_variance == learns_variance}
        prediction = self.trained.get("prediction_type")
        if prediction is None:
            return next(iter(fitting)) if len(fitting) == 1 else None
        return next((name for name, each in fitting.items() if each.prediction_type == prediction), None)

    @property
    def schedule(self) -> dict[str, Any]:
        """Fields of the noise schedule that the model was trained on."""
        return {name: value for name, value in self.trained.items() if name in Schedule.FIELDS}


def load_origin(source: str) -> Origin:
    """Load the model that a fine-tuning starts from.

    Args:
        source: A pipeline's folder or id on the Hub, in this project's form or in diffusers'; the folder of a
            `DiTModel`; or the file of an original checkpoint, whose averaged weights are taken.

    Raises:
        OSError: If the model cannot be fetched.
        ValueError: If the model is not there, damaged, or of another kind.
    """
    path = Path(source)
    if not (path / "config.json").is_file():  # the folder of a `DiTModel`
        try:
            check_pipeline_source(source)
        except ValueError as error:
            raise ValueError(f"init_from={source!r}: {error}") from error
    if path.is_file():
        model = from_original(path)
        if training_of(model.config):  # weights of SiT
            trained = {"prediction_type": "flow_prediction", "num_train_timesteps": NUM_TRAIN_TIMESTEPS}
            return Origin(source, model.float(), None, trained)
        return Origin(source, model.float(), None, {"prediction_type": "epsilon", **Schedule().config})
    if path.is_dir() and not (path / "model_index.json").is_file():
        return Origin(source, DiTModel.from_pretrained(path).float(), None, {})
    pipeline = DiTPipeline.from_pretrained(source, vae=None)
    config = pipeline.scheduler.config
    trained = {"prediction_type": pipeline.config.prediction_type or config.get("prediction_type")}
    is_flow = trained["prediction_type"] in FLOW  # which has no betas, also where a solver has fields for them
    has_betas = "beta_schedule" in config and not is_flow
    names = Schedule.FIELDS if has_betas else ("num_train_timesteps",)
    trained |= {name: config[name] for name in names if name in config}
    _, vae_class = DiTPipeline.load_config(source)["vae"]
    if vae_class not in (None, "AutoencoderKL"):
        raise ValueError(f"init_from={source!r} has a {vae_class}: a training encodes images by an AutoencoderKL only")
    vae = dict(AutoencoderKL.load_config(source, subfolder="vae")) if vae_class else None
    shift = flow_shift(config) if is_flow else 1.0
    return Origin(source, pipeline.transformer.float(), pipeline.config.id2label, trained, vae, shift)


def take_over(settings: TrainSettings, origin: Origin) -> None:
    """Fill in the settings that the user has left to the model of `init_from`.

    Raises:
        ValueError: If settings contradict the model, naming each contradiction; or if a setting that the model does
            not decide is missing.
    """
    vae_name = settings.vae_name_or_path or (origin.name if origin.vae else rows(settings)["vae_name_or_path"].default)
    vae_config = read_vae_config(vae_name, origin)
    contradictions = [*_of_objective(settings, origin), *_of_vae(vae_name, vae_config, origin)]
    contradictions += _of_architecture(settings, origin)
    if settings.keep_classes and not origin.model.config.num_classes:
        contradictions.append("keep_classes=True, but it has no classes")
    sides = {side * vae_shrink_factor(vae_config) for side in origin.model.config.sample_height_width}
    own_resolution = sides.pop() if len(sides) == 1 else None
    if settings.resolution is None and own_resolution is None:
        contradictions.append("resolution is missing, and its latents are not square: set --resolution")
    policy = settings.resize_position_embedding
    if policy != "extend" and settings.resolution in (None, own_resolution):
        contradictions.append(f"resize_position_embedding={policy!r} has no effect, because its resolution is kept")
    if contradictions:
        raise ValueError(
            f"init_from={origin.name!r} does not fit the other settings: {'; '.join(contradictions)}. "
            "Leave these settings out, or start from another model"
        )
    if not origin.trained:
        logger.warning(f"{origin.name} does not say how it was trained: the paper's noise schedule is taken")
    decided = {"objective": origin.objective, "resolution": own_resolution, "vae_name_or_path": vae_name}
    decided["timestep_shift"] = (
        origin.timestep_shift
    )  # another one is no contradiction: larger latents need a larger one
    settings.fill_in({**origin.schedule, **decided, "model": None})


def read_vae_config(name: str, origin: Origin | None) -> dict[str, Any]:
    """Read the configuration of a VAE: that of the starting model, or one with a name of its own."""
    if origin is not None and origin.vae is not None and name == origin.name:
        return origin.vae
    check_vae_name(name)
    return dict(AutoencoderKL.load_config(name, subfolder=vae_subfolder(name)))


def check_vae_name(name: str) -> None:
    """Refuse what can only be a mistake in place of the folder or the id of a VAE.

    Raises:
        ValueError: If the name is a mistyped path, or a file or folder of another kind.
    """
    try:
        check_model_source(name, vae_subfolder(name))
    except ValueError as error:
        raise ValueError(f"vae_name_or_path={name!r}: {error}") from error


def _of_objective(settings: TrainSettings, origin: Origin) -> list[str]:
    """List what contradicts the objective and the noise schedule of the model."""
    if settings.objective is None and origin.objective is None:
        return ["objective is missing, and it does not say how it was trained: set --objective"]
    found = []
    if settings.objective is not None:
        wanted = OBJECTIVES[settings.objective]
        trained_for = origin.trained.get("prediction_type", wanted.prediction_type)
        if (trained_for, origin.model.config.learn_sigma) != (wanted.prediction_type, wanted.learns_variance):
            name = origin.objective or f"{trained_for}, learn_sigma={origin.model.config.learn_sigma}"
            found.append(f"objective={settings.objective!r}, but it was trained with {name!r}")
    if origin.trained:
        for name in rows(settings).keys() & set(Schedule.FIELDS):
            value = getattr(settings, name)
            if value is not None and value != origin.trained.get(name):
                own = f"with {origin.trained[name]!r}" if name in origin.trained else "without betas"
                found.append(f"{name}={value!r}, but it was trained {own}")
    return sorted(found)


def _of_vae(name: str, config: dict[str, Any], origin: Origin) -> list[str]:
    """List how the latents of a VAE differ from those that the model was trained on."""
    channels = origin.model.config.in_channels
    found = []
    if config["latent_channels"] != channels:
        found.append(f"vae_name_or_path={name!r} makes {config['latent_channels']} channels, but it has {channels}")
    if origin.vae is not None:
        own = {key: origin.vae.get(key) for key in LATENT_FIELDS[1:]}
        wanted = {key: config.get(key) for key in LATENT_FIELDS[1:]}
        found += [
            f"vae_name_or_path={name!r} has {key}={wanted[key]!r}, but it was trained with {own[key]!r}"
            for key in own
            if wanted[key] != own[key]
        ]
    return found


def _of_architecture(settings: TrainSettings, origin: Origin) -> list[str]:
    """List the fields of `DiTConfig` that the settings give, and that differ from the model's."""
    own = origin.model.config
    size = DiTConfig.from_name(settings.model) if settings.model else own
    wanted = {name: getattr(size, name) for name in PaperSize._fields[:4]} | settings.config_overrides
    unknown = [
        f"model_overrides sets {name!r}, which is no field of DiTConfig" for name in wanted if not hasattr(own, name)
    ]
    differing = [name for name, value in wanted.items() if value != getattr(own, name, value)]
    return unknown + [f"{name}={wanted[name]!r}, but it has {name}={getattr(own, name)!r}" for name in differing]
