"""What `dit-hf convert` writes: a pipeline's folder with a card, or a checkpoint of the original's keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from transformers.utils import logging
from yaml import YAMLError

from ..betas import PAPER_BETAS
from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel
from .diffusers_format import HUB_ARGUMENTS
from .original import to_original
from .pipelines import library_of_transformer, scheduler_of

logger = logging.get_logger(__name__)

ORIGINAL_LICENSE = "cc-by-nc-4.0"
FORMS = ("dit_hf", "original", "diffusers")
TEXT = """# {name}

A Diffusion Transformer (DiT, [Peebles & Xie 2022](https://arxiv.org/abs/2212.09748)), converted by dit-hf from
{origin}. The weights are those of the source, bit for bit.

{architecture}

```python
import torch
from {package} import DiTPipeline

pipeline = DiTPipeline.from_pretrained(".")
image = pipeline({call}, generator=torch.Generator().manual_seed(0)).images[0]
image.save("sample.png")
```

## Licence

{licence}
"""
ORIGINAL_LICENSE_TEXT = (
    "The [original weights](https://github.com/facebookresearch/DiT) are licensed CC-BY-NC 4.0: not for commercial use."
)


def convert(
    cls: type[DiffusionPipeline],
    source: str,
    destination: str | os.PathLike,
    to: Literal["dit_hf", "original", "diffusers"] = "dit_hf",
    scheduler: str | None = None,
    license: str | None = None,
    **arguments: Any,
) -> None:
    """Convert a pipeline or a checkpoint of anybody's to a folder that loads, or to a checkpoint of the original.

    Args:
        cls: `DiTPipeline`, or a class made from it.
        source: What its `from_pretrained` takes.
        destination: A new folder; for the original's form a new file that ends with .pt or .safetensors.
        to: The form.
        scheduler: The name of diffusers' scheduler; None keeps the source's, and is the paper's for a checkpoint.
        license: For the card; None takes what the source's card says, `cc-by-nc-4.0` for weights of the original's
            published size in others' forms, and else says that it is not known.
        **arguments: For `from_pretrained`.

    Raises:
        ValueError: If the destination is taken or has a wrong name, or the source cannot be converted.
    """
    destination = Path(destination)
    if to not in FORMS:
        raise ValueError(f"to={to!r}: choose from {', '.join(FORMS)}")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise ValueError(f"{destination} exists: choose a new name, nothing is overwritten")
    if to == "original" and destination.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{destination}: the original's form is a file, end it with .pt or .safetensors")
    if to == "original" and (license or scheduler):
        name, value = ("license", license) if license else ("scheduler", scheduler)
        raise ValueError(f"{name}={value!r}: a checkpoint of the original holds weights only, leave it out")
    if to == "original" and os.path.isfile(source):
        arguments.setdefault("vae", None)  # only the transformer is wanted
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    commit = None
    if not os.path.exists(source):
        commit = Path(hf_hub_download(source, "model_index.json", **hub)).parent.name
        hub["revision"] = arguments["revision"] = commit  # what the card names is what is loaded
    others = os.path.isfile(source) or library_of_transformer(source, **hub) == "diffusers"
    pipeline = cls.from_pretrained(source, **arguments)
    if scheduler is not None:
        new = scheduler_of(scheduler, pipeline.transformer.config.learn_sigma, like=pipeline.scheduler)
        kept = {name: pipeline.config[name] for name in ("id2label", "guidance_channels", "prediction_type")}
        pipeline = cls(**{**pipeline.components, "scheduler": new}, **kept)  # which checks that they fit
    if to == "original":
        _warn_of_what_a_checkpoint_lacks(pipeline.scheduler.config)
        _write_checkpoint(to_original(pipeline.transformer), destination)
        return
    said = {"license": license} if license else _said_license(source, hub)
    said, text = _licence(said, pipeline.transformer.config, others)
    if not said:
        logger.warning(f"{source} does not say its licence, and so the card says: pass --license where you know it")
    pipeline.save_pretrained(destination, format=to)
    card = _make_card(pipeline.transformer, destination.resolve().name, source, commit, to, said, text)
    card.save(destination / "README.md")


def _warn_of_what_a_checkpoint_lacks(config: Mapping[str, Any]) -> None:
    """Say so where the model was trained with other betas, or to predict something else, than the paper's."""
    usual = {**PAPER_BETAS, "num_train_timesteps": 1000, "prediction_type": "epsilon"}
    others = {name: config[name] for name in usual if name in config and config[name] != usual[name]}
    if "beta_start" not in config:
        others = {"prediction_type": "flow_prediction"}
    if others:
        stated = ", ".join(f"{name}={value!r}" for name, value in others.items())
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


def _said_license(source: str, hub: Mapping[str, Any]) -> dict[str, str]:
    """What the source's card says of its licence; nothing where there is no card, or none that can be read."""
    if os.path.isfile(source):
        return {}
    try:
        file = Path(source, "README.md") if os.path.isdir(source) else hf_hub_download(source, "README.md", **hub)
        data = ModelCard.load(file).data.to_dict() if Path(file).is_file() else {}
    except EntryNotFoundError:  # offline, one that was not fetched before is not there either
        return {}
    except (ValueError, YAMLError) as error:
        logger.warning(f"The card of {source} cannot be read, so its licence is not known: {error}")
        return {}
    names = ("license", "license_name", "license_link")
    return {name: data[name] for name in names if isinstance(data.get(name), str)}


def _licence(said: dict[str, str], config: DiTConfig, others: bool) -> tuple[dict[str, str], str]:
    """The licence as the card's metadata and text: what is said, else the original's for weights that may be theirs."""
    if said:
        return said, f"`{said.get('license_name', said.get('license'))}`."
    if others and _has_published_size(config):
        return {"license": ORIGINAL_LICENSE}, ORIGINAL_LICENSE_TEXT
    return {}, "The source does not say it: ask its author before you use or share the weights."


def _has_published_size(config: DiTConfig) -> bool:
    """Whether the original's authors published weights of this size: DiT-XL/2 of ImageNet at 256 and 512 px."""
    is_theirs = config.block_type == "adaln_zero" and config.learn_sigma and config.num_classes == 1000
    return is_theirs and config.paper_size == "DiT-XL/2" and config.sample_size in (32, 64)


def _make_card(
    model: DiTModel, name: str, source: str, commit: str | None, to: str, said: Mapping[str, str], licence: str
) -> ModelCard:
    """A card with licence and origin; of a local source it names the last part only."""
    config = model.config
    conditional = ["class-conditional-image-generation"] if config.num_classes else []
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["dit", "diffusion", *(["dit-hf"] if to == "dit_hf" else []), *conditional],
        base_model=source if commit else None,
    )
    for field, value in said.items():
        data[field] = value
    text = TEXT.format(
        name=name,
        origin=f"`{source}` at commit `{commit}`" if commit else f"`{Path(source).name}`",
        architecture=_architecture(config, model.num_parameters()),
        package="dit_hf" if to == "dit_hf" else "diffusers",
        call=(f"class_labels=[{config.num_classes // 2}]" if config.num_classes else "num_images=1")
        + ("" if config.has_null_class else ", guidance_scale=1"),
        licence=licence,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _architecture(config: DiTConfig, num_parameters: int) -> str:
    height, width = config.sample_height_width
    return (
        f"{config.paper_size or 'None of the sizes of the paper'}: {config.num_hidden_layers} layers of width "
        f"{config.hidden_size} with {config.num_attention_heads} heads, patch {config.patch_size} on latents of "
        f"{config.in_channels} x {height} x {width}, {config.num_classes or 'no'} classes, {config.block_type} blocks; "
        f"{num_parameters:,} parameters."
    )
