"""LoRA for a DiT through PEFT: train small matrices beside the frozen ones (Hu et al. 2021, arXiv 2106.09685).

A Linear W (D_out, D_in) becomes W + (alpha / rank) B A, with B (D_out, rank) starting at zero and A (rank, D_in).
The layers of a block state which of their Linears are adapted: see `BlockLayer` in layers.py.

An adapter is a folder that PEFT reads: `adapter_config.json` and `adapter_model.safetensors`, whose weights include the
whole label table. Beside them, `classes.json` names the classes of that table, and the size of latents in training.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import nn

from ..cards.adapter import make_adapter_card
from ..cards.metadata import hub_id
from ..cards.page import CARD
from ..class_names import names_to_ids
from ..extras import require
from ..modeling_dit import DiTModel
from ..weight_files import strip_wrappers

LABELS = "y_embedder"
CONFIG, WEIGHTS, CLASSES = "adapter_config.json", "adapter_model.safetensors", "classes.json"
FILES = [CONFIG, WEIGHTS, CLASSES, CARD]
ADAPTER = "default"  # PEFT's name of the adapter in training


def has_adapter(model: nn.Module) -> bool:
    """Return whether a model has an adapter that is not merged."""
    return bool(getattr(model, "peft_config", None))


def lora_targets(model: nn.Module) -> str:
    """Make the regular expression of the Linears that LoRA adapts, as the layers of the model's blocks state them.

    Args:
        model: Model, with or without an adapter.

    Raises:
        ValueError: If no layer states any.
    """
    stated = {
        strip_wrappers(f"{name}.{linear}")
        for name, layer in model.named_modules()
        for linear in getattr(type(layer), "lora_targets", ())
    }
    if not stated:
        raise ValueError(f"no layer of {type(model).__module__} states lora_targets: load it as dit_hf.DiTModel")
    inner = sorted({name.removeprefix("blocks.").partition(".")[2] for name in stated})
    return rf"blocks\.\d+\.({'|'.join(map(re.escape, inner))})"


def add_lora(model: DiTModel, rank: int, alpha: float | None = None) -> None:
    """Freeze a model and put a fresh adapter into it, in place; the output does not change.

    The weights that remain trainable are those of the adapter and the label table.

    Args:
        model: Model without an adapter.
        rank: Rank of the adapter's matrices, in 1..hidden_size.
        alpha: LoRA's alpha. The adapter's output is multiplied by alpha / rank. None for `rank`, a factor of 1.

    Raises:
        ImportError: If PEFT is not installed.
        ValueError: If the model has an adapter, or the rank is above the model's width.
    """
    require("LoRA", "peft")
    from peft import LoraConfig

    if has_adapter(model):
        raise ValueError("the model has an adapter already: merge_lora or remove_lora it first")
    if not 1 <= rank <= model.config.hidden_size:
        raise ValueError(f"rank={rank} is outside 1..{model.config.hidden_size}, the width of the model")
    saved = [LABELS] if model.y_embedder is not None else None
    scale, targets = rank if alpha is None else alpha, lora_targets(model)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=scale, target_modules=targets, modules_to_save=saved), ADAPTER)


def save_lora(
    model: DiTModel,
    folder: str | Path,
    id2label: Mapping[int, str] | None,
    base_model: str | None,
    *,
    license: str | None = None,
) -> None:
    """Write a model's adapter as a folder, with a card.

    Args:
        model: Model with an adapter in training.
        folder: Folder, which is made if it is missing.
        id2label: Names of the classes, of which the model may have none.
        base_model: Model that the adapter was trained on; written down if it is an id on the Hub.
        license: Licence of the adapter, as the Hub calls it; None leaves it open.

    Raises:
        ValueError: If the model has no adapter, or if the licence is none of the Hub's.
    """
    if ADAPTER not in getattr(model, "peft_config", {}):
        raise ValueError("the model has no adapter to save: call add_lora, and train it")
    folder, base = Path(folder), hub_id(base_model)
    lora = model.peft_config[ADAPTER]
    lora.base_model_name_or_path = None  # PEFT would look it up on the Hub
    model.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    names = {str(class_id): name for class_id, name in (id2label or {}).items()}
    size = model.config.sample_size
    content = {"num_classes": model.config.num_classes, "id2label": names, "sample_size": size}
    (folder / CLASSES).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        num_parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    card = make_adapter_card(
        base_model=base,
        num_classes=model.config.num_classes,
        labels={name: ids[0] for name, ids in names_to_ids(id2label or {}).items() if len(ids) == 1},
        rank=lora.r,
        alpha=lora.lora_alpha,
        num_parameters=num_parameters,
        has_null_class=model.config.has_null_class,
        license=license,
    )
    card.save(folder / CARD)
