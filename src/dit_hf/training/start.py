"""What a training starts from: a VAE, an objective, and a fresh model or that of `init_from` fitted to the data."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
from diffusers import AutoencoderKL, SchedulerMixin

from ..configuration_dit import DiTConfig
from ..diffusion import OBJECTIVES, Objective
from ..finetuning.classes import carry_classes, match_classes
from ..finetuning.lora import add_lora
from ..finetuning.resolution import resize_positions
from ..modeling_dit import DiTModel
from ..vae import check_resolution, vae_shrink_factor, vae_subfolder
from .assembly import make_objective
from .origin import Origin, check_vae_name, load_origin, take_over
from .settings import TrainSettings

logger = logging.getLogger("dit_hf.finetuning")


@dataclass
class InitialModel:
    """A model to train, and its classes.

    Args:
        model: Model fitted to classes and resolution; the part that is not trained is frozen.
        names: Names of its classes; (K',).
        class_indices: The model's class of each class of the data; (K,).
    """

    model: DiTModel
    names: list[str]
    class_indices: list[int]


@dataclass
class Start(InitialModel):
    """A model to train, with its objective and the VAE that makes its latents."""

    objective: Objective
    vae: AutoencoderKL


def choose_start(settings: TrainSettings, names: list[str]) -> Start:
    """Load or make what a training starts from, and fill in the settings that `init_from` decides.

    Args:
        settings: Settings of the training.
        names: Names of the classes in the data; (K,).

    Raises:
        OSError: If the VAE or the model cannot be fetched.
        ValueError: If the settings contradict `init_from`, or do not fit each other.
    """
    origin = load_origin(settings.init_from) if settings.init_from else None
    if origin is not None:
        take_over(settings, origin)
    name = settings.vae_name_or_path
    subfolder = "vae" if name == settings.init_from else vae_subfolder(name)
    if name != settings.init_from:
        check_vae_name(name)
    vae = AutoencoderKL.from_pretrained(name, subfolder=subfolder)
    sample_size = latent_side(settings.resolution, vae)
    objective = make_objective(settings, origin.schedule if origin else {})
    if origin is None:
        initial = fresh_model(settings, sample_size, vae.config.latent_channels, names)
    else:
        initial = adapt_to_data(
            origin,
            names if origin.model.config.num_classes else [],
            sample_size=sample_size,
            keep_classes=settings.keep_classes,
            resize_position_embedding=settings.resize_position_embedding,
            last_blocks=settings.last_blocks,
            lora_rank=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
        )
    return Start(**vars(initial), objective=objective, vae=vae)


def latent_side(resolution: int, vae: AutoencoderKL) -> int:
    """Return the side of the latents of an image.

    Raises:
        ValueError: If the resolution is no multiple of what the VAE shrinks images by.
    """
    shrink = vae_shrink_factor(vae.config)
    check_resolution(resolution, shrink)
    return resolution // shrink


def fresh_model(settings: TrainSettings, sample_size: int, in_channels: int, names: list[str]) -> InitialModel:
    """Return a model of random weights: the paper's size that the settings name, fitted to latents and classes."""
    fitted: dict[str, Any] = {
        "sample_size": sample_size,
        "in_channels": in_channels,
        "num_classes": len(names),
        "learn_sigma": OBJECTIVES[settings.objective].learns_variance,
    }
    model = DiTModel(DiTConfig.from_name(settings.model, **{**fitted, **settings.config_overrides}))
    if not model.config.num_classes:
        return InitialModel(model, [], [])
    return InitialModel(model, names, list(range(len(names))))


def make_scheduler(objective: Objective) -> SchedulerMixin:
    """Return the scheduler of diffusers that samples what the objective trains."""
    config = objective.scheduler_config()
    return getattr(diffusers, config["_class_name"]).from_config(config)


@dataclass
class NewClasses:
    """The classes of a fine-tuned model.

    Args:
        names: Names of the classes; (K',).
        origins: Id that each class had, None for a new one; (K',).
        class_indices: The model's class of each class of the data; (K,).
    """

    names: list[str]
    origins: list[int | None]
    class_indices: list[int]


def new_classes(origin: Origin, names: Sequence[str], *, keep: bool) -> NewClasses:
    """Find out which classes the fine-tuned model has, and where their rows come from.

    Args:
        origin: Model to start from.
        names: Names of the classes in the data; (K,).
        keep: Whether the model's own classes stay, before those that are new.

    Raises:
        ValueError: If the classes shall stay and nobody knows their names, or as in `match_classes`.
    """
    count, known = origin.model.config.num_classes, origin.id2label
    if not known:
        if keep:
            raise ValueError(f"keep_classes: {origin.name} holds no class names to tell its classes from new ones")
        same = len(names) == count
        rule = "its label table is kept row by row" if same else "every class starts at the mean of its label table"
        logger.warning(f"{origin.name} holds no class names: {rule}")
        return NewClasses(list(names), list(range(count)) if same else [None] * len(names), list(range(len(names))))
    matched = match_classes(known, names)
    added = [name for name, known_id in zip(names, matched, strict=True) if known_id is None]
    logger.info(f"{len(names) - len(added)} of the {len(names)} classes are known to {origin.name}")
    if not keep:
        return NewClasses(list(names), matched, list(range(len(names))))
    kept = [known.get(class_id, str(class_id)) for class_id in range(count)]
    class_indices = [count + added.index(name) if i is None else i for name, i in zip(names, matched, strict=True)]
    return NewClasses([*kept, *added], [*range(count), *([None] * len(added))], class_indices)


def train_last_blocks(model: DiTModel, num_blocks: int) -> None:
    """Train the last blocks, the final layer and the label table; freeze the rest.

    Raises:
        ValueError: If the model has fewer blocks.
    """
    if not 0 <= num_blocks <= model.config.num_hidden_layers:
        raise ValueError(f"last_blocks={num_blocks}: the model has {model.config.num_hidden_layers} blocks")
    model.requires_grad_(False)
    parts = [*model.blocks[model.config.num_hidden_layers - num_blocks :], model.final_layer, model.y_embedder]
    for part in parts:
        if part is not None:
            part.requires_grad_(True)


def adapt_to_data(
    origin: Origin,
    names: Sequence[str],
    *,
    sample_size: int | tuple[int, int] | list[int],
    keep_classes: bool = False,
    resize_position_embedding: Literal["extend", "interpolate"] = "extend",
    last_blocks: int | None = None,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
) -> InitialModel:
    """Fit a model to new classes and a new resolution, and choose which part of it is trained.

    Args:
        origin: Model from `load_origin`, which is changed in place.
        names: Names of the classes in the data; none for an unconditional model.
        sample_size: Side of the latents, or (height, width).
        keep_classes: Whether the model's own classes stay, before those that are new.
        resize_position_embedding: Policy of `resize_positions`, for a size that is not the model's.
        last_blocks: Number of blocks at the end that are trained; by default, and without a rank, the whole model is.
        lora_rank: Rank of the adapter that is trained instead.
        lora_alpha: LoRA's alpha, as in `add_lora`.

    Raises:
        ImportError: If an adapter is asked for and PEFT is not installed.
        ValueError: As in the functions that this one calls, before anything is computed.
    """
    model = origin.model
    classes = new_classes(origin, names, keep=keep_classes) if names else NewClasses([], [], [])
    if classes.origins != list(range(model.config.num_classes)):
        carry_classes(model, classes.origins)
    if model.config.sample_size != sample_size:
        logger.info(f"latents of side {sample_size} instead of {model.config.sample_size}: {resize_position_embedding}")
        resize_positions(model, sample_size, resize_position_embedding)
    if last_blocks is not None:
        train_last_blocks(model, last_blocks)
    if lora_rank is not None:
        add_lora(model, lora_rank, lora_alpha)
    return InitialModel(model, classes.names, classes.class_indices)
