"""What `dit-hf convert` writes: a pipeline's folder with a card, or a checkpoint of the original's keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file

from .diffusers_format import HUB_ARGUMENTS
from .original import to_original
from .pipelines import library_of_transformer, scheduler_of

ORIGINAL_LICENSE = "cc-by-nc-4.0"
FORMS = ("dit_hf", "original", "diffusers")
LOADING = {
    "dit_hf": "from dit_hf import DiTPipeline\n\npipe = DiTPipeline.from_pretrained(folder)",
    "diffusers": "from diffusers import DiTPipeline\n\npipe = DiTPipeline.from_pretrained(folder)",
}
TEXT = """# {name}

A Diffusion Transformer (DiT, [Peebles & Xie 2022](https://arxiv.org/abs/2212.09748)), converted by dit-hf from
`{origin}`. The weights are those of the source, bit for bit.

```python
{loading}
```
{licence}"""
LICENCE_TEXT = """
The [original weights](https://github.com/facebookresearch/DiT) are licensed CC-BY-NC 4.0: not for commercial use.
"""


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
        license: For the card; None is the original weights' `cc-by-nc-4.0`, unless the source has this project's form.
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
    if to == "original" and os.path.isfile(source):
        arguments.setdefault("vae", None)  # only the transformer is wanted
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    others = os.path.isfile(source) or library_of_transformer(source, **hub) == "diffusers"
    pipeline = cls.from_pretrained(source, **arguments)
    if scheduler is not None:
        pipeline.register_modules(scheduler=scheduler_of(scheduler, pipeline.transformer.config.learn_sigma))
    if to == "original":
        _write_checkpoint(to_original(pipeline.transformer), destination)
        return
    pipeline.save_pretrained(destination, format=to)
    _write_card(destination, source, to, license or (ORIGINAL_LICENSE if others else None))


def _write_checkpoint(state: Mapping[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.save(dict(state), path)
    else:
        save_file(dict(state), path)


def _write_card(folder: Path, source: str, to: str, license: str | None) -> None:
    """A card with licence and origin; of a local source it names the last part only."""
    origin = Path(source).name if os.path.exists(source) else source
    data = ModelCardData(
        license=license,
        library_name="dit-hf" if to == "dit_hf" else "diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["dit", "diffusion-transformer", "class-conditional-image-generation"],
        base_model=None if os.path.exists(source) else source,
    )
    licence = LICENCE_TEXT if license == ORIGINAL_LICENSE else ""
    text = TEXT.format(name=folder.resolve().name, origin=origin, loading=LOADING[to], licence=licence)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
