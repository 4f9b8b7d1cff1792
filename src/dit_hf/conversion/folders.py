"""What `dit-hf convert` writes: a pipeline's folder with a card, or a checkpoint with the original's keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors.torch import save_file
from transformers.utils import logging

from ..betas import PAPER_BETAS
from ..cards.converted import make_converted_card
from ..cards.licences import ORIGINAL, SIT, Licence, stated_licence
from ..cards.metadata import check_license
from ..cards.page import CARD
from ..cards.stamp import digest_of_weights, stamped
from ..configuration_dit import DiTConfig
from ..places import check_pipeline_source, places_to_look
from ..sampling.defaults import PIPELINE_SETTINGS
from .diffusers_files import HUB_ARGUMENTS
from .flow_weights import training_of
from .objective import has_untrained_variance
from .original import to_original
from .pipelines import library_of_transformer
from .schedulers import replacement

logger = logging.get_logger(__name__)

FORMS = ("dit_hf", "original", "diffusers")


def convert(
    cls: type[DiffusionPipeline],
    source: str,
    destination: str | os.PathLike,
    to: Literal["dit_hf", "original", "diffusers"] = "dit_hf",
    scheduler: str | None = None,
    license: str | None = None,
    **arguments: Any,
) -> None:
    """Convert a pipeline or a checkpoint to a folder that loads, or to a checkpoint of the original.

    Args:
        cls: `DiTPipeline`, or a class made from it.
        source: What the class's `from_pretrained` takes: a file, a folder or an id on the Hub.
        destination: New folder; for the original's form a new file that ends with .pt or .safetensors.
        to: Form that is written.
        scheduler: Name of diffusers' scheduler. None keeps the source's scheduler; a checkpoint gets the paper's.
        license: Licence for the card. None takes the licence that the source's card states. If there is none, weights
            of the size that the original's authors published, in a form of others, get `cc-by-nc-4.0`; for all other
            weights the card says that the licence is not known.
        **arguments: Arguments of `from_pretrained`.

    Raises:
        ValueError: If the destination is taken or has a wrong name, or if the source cannot be converted.
    """
    destination = Path(destination)
    _check_request(destination, to, scheduler, license)
    check_pipeline_source(source, asks_for_each=True, **places_to_look(arguments))
    if to == "original" and os.path.isfile(source):
        arguments.setdefault("vae", None)  # only the transformer is wanted
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    commit = None
    if not os.path.exists(source):
        commit = Path(hf_hub_download(source, "model_index.json", **hub)).parent.name
        hub["revision"] = arguments["revision"] = commit  # so that the card names the commit that is loaded
    is_ours = not os.path.isfile(source) and library_of_transformer(source, **hub) != "diffusers"
    pipeline = cls.from_pretrained(source, **arguments)
    if scheduler is not None:
        pipeline = _with_scheduler(cls, pipeline, scheduler)
    if to == "original":
        _warn_of_what_a_checkpoint_lacks(pipeline)
        _write_checkpoint(to_original(pipeline.transformer), destination)
        return
    stated = Licence(license) if license else stated_licence(source, hub)
    may_be_published = not is_ours and not has_untrained_variance(pipeline.transformer)  # which SiT's weights have
    licence = choose_licence(stated, pipeline.transformer.config, may_be_published)
    if not licence and not is_ours and _is_published_sit(pipeline.transformer.config):
        licence = SIT
    if not licence:
        logger.warning(f"{source} does not state a licence, and so the card says: pass --license if you know it")
    pipeline.save_pretrained(destination, format=to)
    name, in_diffusers = destination.resolve().name, to == "diffusers"
    card = make_converted_card(pipeline, name, source, commit, licence, in_diffusers=in_diffusers)
    (destination / CARD).write_text(stamped(str(card), digest_of_weights(destination)), encoding="utf-8")


def _check_request(destination: Path, to: str, scheduler: str | None, license: str | None) -> None:
    if to not in FORMS:
        raise ValueError(f"to={to!r}: choose from {', '.join(FORMS)}")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise ValueError(f"{destination} exists: choose a new name, nothing is overwritten")
    if to == "original" and destination.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{destination}: the original's form is a file, end it with .pt or .safetensors")
    if to == "original" and (license or scheduler):
        name, value = ("license", license) if license else ("scheduler", scheduler)
        raise ValueError(f"{name}={value!r}: a checkpoint of the original holds weights only, leave it out")
    check_license(license)


def _with_scheduler(cls: type[DiffusionPipeline], pipeline: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """Return a pipeline with another scheduler; its constructor checks that the parts fit."""
    scheduler = replacement(pipeline, name)
    kept = {field: pipeline.config[field] for field in PIPELINE_SETTINGS}
    return cls(**{**pipeline.components, "scheduler": scheduler}, **kept)


def _warn_of_what_a_checkpoint_lacks(pipeline: DiffusionPipeline) -> None:
    """Warn if the model was trained with other betas, or to predict something else, than the paper's."""
    config, predicted = pipeline.scheduler.config, pipeline.config.prediction_type
    usual = {**PAPER_BETAS, "num_train_timesteps": 1000}
    unusual = {name: config[name] for name in usual if name in config and config[name] != usual[name]}
    if predicted.startswith("flow_"):
        unusual = {}  # the betas, if the scheduler has any, have no effect
    if predicted != "epsilon":
        unusual["prediction_type"] = predicted
    if unusual:
        stated = ", ".join(f"{name}={value!r}" for name, value in unusual.items())
        logger.warning(
            f"the checkpoint holds weights only, and not that the model was trained with {stated}: as the original "
            "samples it, it gives other images"
        )


def _write_checkpoint(state: Mapping[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.save(dict(state), path)
    else:
        save_file(dict(state), path)


def choose_licence(stated: Licence, config: DiTConfig, may_be_published: bool) -> Licence:
    """Return the licence that is stated, else the original's for weights that may be those of its authors.

    Args:
        stated: Licence that the user or the source's card states; empty if neither does.
        config: Configuration of the model.
        may_be_published: Whether the source may be a file of the original's authors, or one packaged from it.
    """
    if not stated and may_be_published and _has_published_size(config):
        return ORIGINAL
    return stated


def _is_published_sit(config: DiTConfig) -> bool:
    """Whether SiT's authors published weights of this size: SiT-XL/2 of ImageNet at 256 and 512 px."""
    as_stored = DiTConfig.from_dict({**config.to_dict(), "learn_sigma": True})
    return training_of(config) == "sit" and _has_published_size(as_stored)


def _has_published_size(config: DiTConfig) -> bool:
    """Whether the original's authors published weights of this size: DiT-XL/2 of ImageNet at 256 and 512 px."""
    is_theirs = config.block_type == "adaln_zero" and config.learn_sigma and config.num_classes == 1000
    return is_theirs and config.paper_size == "DiT-XL/2" and config.sample_size in (32, 64)
