"""Where a fine-tuning starts: a model from anywhere, fitted to classes, resolution and the part to be trained."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL

from ..conversion import from_original
from ..diffusion import Schedule
from ..finetuning.classes import carry_classes, match_classes
from ..finetuning.lora import add_lora
from ..finetuning.resolution import resize_positions
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline

logger = logging.getLogger("dit_hf.finetuning")


@dataclass
class Origin:
    """A trained model, and what is known of how it was trained.

    Args:
        name: what the user called it.
        model: with its weights.
        id2label: names of its classes, None if nobody knows them.
        trained: what the training must go on with, by name: prediction type, betas, scaling of the latents.
    """

    name: str
    model: DiTModel
    id2label: dict[int, str] | None
    trained: dict[str, Any]


def load_origin(source: str) -> Origin:
    """Load the model that a fine-tuning starts from.

    Args:
        source: a pipeline's folder or id on the Hub, in this project's form or in diffusers'; the folder of a
            `DiTModel`; or the file of an original checkpoint, of which the averaged weights are taken.

    Raises:
        OSError: if it cannot be fetched.
        ValueError: if it is not there, damaged, or of another kind of model.
    """
    path = Path(source)
    if path.is_file():
        model = from_original(path)
        return Origin(source, model.float(), None, {"prediction_type": "epsilon", **Schedule().config})
    if path.is_dir() and not (path / "model_index.json").is_file():
        if not (path / "config.json").is_file():
            raise ValueError(f"init_from={source!r} has no model_index.json and no config.json: pass a saved pipeline")
        return Origin(source, DiTModel.from_pretrained(path).float(), None, {})
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise ValueError(f"init_from={source!r} is not there: pass a folder, a file, or an id on the Hub (user/name)")
    pipeline = DiTPipeline.from_pretrained(source, vae=None)
    trained = {"prediction_type": pipeline.config.prediction_type or pipeline.scheduler.config.get("prediction_type")}
    config = pipeline.scheduler.config
    if "beta_schedule" in config:
        trained |= {name: config[name] for name in Schedule.FIELDS if name in config}
    if DiTPipeline.load_config(source)["vae"][0]:
        trained["scaling_factor"] = AutoencoderKL.load_config(source, subfolder="vae").get("scaling_factor", 0.18215)
    return Origin(source, pipeline.transformer.float(), pipeline.config.id2label, trained)


def check_origin(origin: Origin, wanted: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Refuse to start from a model that is not the one that the settings describe.

    Args:
        origin: the model.
        wanted: fields of `DiTConfig` that must be the model's.
        trained: what the training goes on with, compared where both know it.

    Raises:
        ValueError: naming the field and both values.
    """
    for field, value in wanted.items():
        if (found := getattr(origin.model.config, field)) != value:
            raise ValueError(
                f"{field}={value!r} is asked for, and {origin.name} has {field}={found!r}: change the settings that "
                "say so (model, model_overrides, objective, vae_name_or_path), or start from another model"
            )
    for name in trained.keys() & origin.trained.keys():
        if trained[name] != origin.trained[name]:
            raise ValueError(
                f"{name}={trained[name]!r} is asked for, and {origin.name} was trained with {origin.trained[name]!r}: "
                "a fine-tuning goes on as the training was; see --objective, --beta_schedule and --vae_name_or_path"
            )


@dataclass
class NewClasses:
    """The classes of a fine-tuned model.

    Args:
        names: of each; (K',).
        origins: the id that each had, None for a new one; (K',).
        class_indices: of the classes of the data among them.
    """

    names: list[str]
    origins: list[int | None]
    class_indices: list[int]


def new_classes(origin: Origin, names: Sequence[str], *, keep: bool) -> NewClasses:
    """Find out which classes the fine-tuned model has, and where their rows come from.

    Args:
        origin: the model to start from.
        names: of the classes in the data.
        keep: whether the model's own classes stay, before those that are new.

    Raises:
        ValueError: if the classes shall stay and nobody knows their names, or as in `match_classes`.
    """
    count, known = origin.model.config.num_classes, origin.id2label
    if not known:
        if keep:
            raise ValueError(f"keep_classes: {origin.name} holds no class names to tell its classes from new ones")
        same = len(names) == count
        how = "its label table is kept row by row" if same else "every class starts at the mean of its label table"
        logger.warning(f"{origin.name} holds no class names: {how}")
        return NewClasses(list(names), list(range(count)) if same else [None] * len(names), list(range(len(names))))
    found = match_classes(known, names)
    added = [name for name, known_id in zip(names, found, strict=True) if known_id is None]
    logger.info(f"{len(names) - len(added)} of the {len(names)} classes are known to {origin.name}")
    if not keep:
        return NewClasses(list(names), found, list(range(len(names))))
    old = [known.get(class_id, str(class_id)) for class_id in range(count)]
    class_indices = [count + added.index(name) if i is None else i for name, i in zip(names, found, strict=True)]
    return NewClasses([*old, *added], [*range(count), *([None] * len(added))], class_indices)


def train_last_blocks(model: DiTModel, num_blocks: int) -> None:
    """Train the last blocks, the final layer and the label table; freeze the rest.

    Raises:
        ValueError: if the model has fewer blocks.
    """
    if not 0 <= num_blocks <= model.config.num_hidden_layers:
        raise ValueError(f"last_blocks={num_blocks}: the model has {model.config.num_hidden_layers} blocks")
    model.requires_grad_(False)
    parts = [*model.blocks[model.config.num_hidden_layers - num_blocks :], model.final_layer, model.y_embedder]
    for part in parts:
        if part is not None:
            part.requires_grad_(True)


@dataclass
class InitialModel:
    """A model to be trained, and its classes.

    Args:
        model: fitted to classes and resolution, the part that is not trained frozen.
        names: of its classes; (K',).
        class_indices: of the classes of the data among them.
    """

    model: DiTModel
    names: list[str]
    class_indices: list[int]


def adapt_to_data(
    origin: Origin,
    names: Sequence[str],
    *,
    sample_size: int | tuple[int, int] | list[int],
    keep_classes: bool = False,
    position_embedding: Literal["extend", "interpolate"] = "extend",
    last_blocks: int | None = None,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
) -> InitialModel:
    """Fit a model to new classes and a new resolution, and choose what is trained.

    Args:
        origin: from `load_origin`; its model is changed in place.
        names: of the classes in the data; none for an unconditional model.
        sample_size: side of the latents, or (height, width).
        keep_classes: whether the model's own classes stay, before those that are new.
        position_embedding: as in `resize_positions`, for a size that is not the model's.
        last_blocks: train that many blocks at the end only; all of the model where neither this nor a rank is given.
        lora_rank: train an adapter of this rank only.
        lora_alpha: as in `add_lora`.

    Raises:
        ImportError: for an adapter, without PEFT.
        ValueError: as in the functions that this one calls, before anything is computed.
    """
    model = origin.model
    classes = new_classes(origin, names, keep=keep_classes) if names else NewClasses([], [], [])
    if classes.origins != list(range(model.config.num_classes)):
        carry_classes(model, classes.origins)
    if model.config.sample_size != sample_size:
        logger.info(f"latents of side {sample_size} instead of {model.config.sample_size}: {position_embedding}")
        resize_positions(model, sample_size, position_embedding)
    if last_blocks is not None:
        train_last_blocks(model, last_blocks)
    if lora_rank is not None:
        add_lora(model, lora_rank, lora_alpha)
    return InitialModel(model, classes.names, classes.class_indices)
