"""Writing a pipeline for diffusers' own `DiTPipeline`, which runs without this package.

That pipeline draws with a deterministic DDIM here, guides all channels, drops the learned variance, and divides the
timestep's frequencies by 127. Where this package does otherwise, warnings give the size of the deviation.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DiffusionPipeline
from transformers.utils import logging

from .diffusers_files import read_json
from .diffusers_format import KEPT_BY_MODEL, TRAINED_AS, to_diffusers
from .schedulers import make_scheduler

logger = logging.get_logger(__name__)

STOCK_NULL_CLASS = 1000  # fixed in diffusers' pipeline


def save_for_diffusers(pipeline: DiffusionPipeline, folder: str | os.PathLike, *options: Any, **arguments: Any) -> None:
    """Write a pipeline so that diffusers' own `DiTPipeline` loads it, without this package.

    Args:
        pipeline: A `dit_hf.DiTPipeline`.
        folder: Folder to write.
        *options: Arguments of diffusers' `save_pretrained`.
        **arguments: Arguments of diffusers' `save_pretrained`.

    Raises:
        ValueError: If diffusers' pipeline cannot run the model; the message names the field.
    """
    _check_stock(pipeline)
    scheduler = make_scheduler("DDIMScheduler", learn_sigma=False, template=pipeline.scheduler)
    if not isinstance(pipeline.scheduler, DDIMScheduler):
        logger.warning(
            f"diffusers' pipeline gets a deterministic DDIMScheduler in place of {type(pipeline.scheduler).__name__}."
        )
    channels = pipeline.config.guidance_channels
    if channels != "all":
        logger.warning(f"diffusers' pipeline guides all channels, this one has guidance_channels={channels!r}.")
    model = to_diffusers(pipeline.transformer)
    own = {name: pipeline.config[name] for name in KEPT_BY_MODEL if pipeline.config.get(name) is not None}
    if len(own) > 1:
        stated = ", ".join(f"{name}={own[name]}" for name in KEPT_BY_MODEL[1:] if name in own)
        logger.warning(f"diffusers' pipeline does not read {stated}: pass these in each call.")
    model.register_to_config(**{TRAINED_AS: {**model.config[TRAINED_AS], **own}})
    stock = diffusers.DiTPipeline(transformer=model, vae=pipeline.vae, scheduler=scheduler)
    if pipeline.config.id2label:
        stock.register_to_config(id2label=pipeline.config.id2label)  # which its constructor takes and does not keep
    stock.save_pretrained(folder, *options, **arguments)
    for file in [Path(folder, "model_index.json"), *Path(folder).glob("*/*config.json")]:
        content = read_json(file)
        if content.pop("_name_or_path", None):  # a path of this machine is not published
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_stock(pipeline: DiffusionPipeline) -> None:
    config, vae, scheduler = pipeline.transformer.config, pipeline.vae, pipeline.scheduler
    if config.num_classes != STOCK_NULL_CLASS:
        raise ValueError(
            f"num_classes={config.num_classes}: diffusers' pipeline takes {STOCK_NULL_CLASS} for the null class, so it "
            f"guides models of {STOCK_NULL_CLASS} classes only"
        )
    if (predicted := pipeline.config.prediction_type).startswith("flow_"):
        raise ValueError(f"prediction_type={predicted!r}: diffusers' pipeline gets a DDIMScheduler, which has betas")
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
