"""LoRA for a DiT through PEFT: train small matrices beside the frozen ones (Hu et al. 2021, arXiv 2106.09685).

A Linear W (D_out, D_in) becomes W + (alpha / rank) B A, with B (D_out, rank) starting at zero and A (rank, D_in).
The layers of a block state which of their Linears are adapted: see `BlockLayer` in layers.py.

An adapter is a folder that PEFT reads: `adapter_config.json` and `adapter_model.safetensors`, whose weights include the
whole label table. Beside them, `classes.json` names the classes of that table.
"""

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import is_peft_available

from ..cards.adapter import make_adapter_card
from ..cards.metadata import hub_id
from ..cards.page import CARD
from ..modeling_dit import DiTModel
from ..sampling.class_names import names_to_ids
from ..weight_files import strip_wrappers
from .classes import carry_classes

LABELS = "y_embedder"
CONFIG, WEIGHTS, CLASSES = "adapter_config.json", "adapter_model.safetensors", "classes.json"
FILES = [CONFIG, WEIGHTS, CLASSES, CARD]
ADAPTER = "default"


def _require_peft() -> None:
    if not is_peft_available():
        raise ImportError("LoRA needs PEFT: run `pip install peft`")


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
    _require_peft()
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
        model: Model with an adapter.
        folder: Folder, which is made if it is missing.
        id2label: Names of the classes, of which the model may have none.
        base_model: Model that the adapter was trained on; written down if it is an id on the Hub.
        license: Licence of the adapter, as the Hub calls it; None leaves it open.

    Raises:
        ValueError: If the model has no adapter, or if the licence is none of the Hub's.
    """
    if not has_adapter(model):
        raise ValueError("the model has no adapter to save: add_lora, or load one")
    folder, base = Path(folder), hub_id(base_model)
    lora = model.peft_config[ADAPTER]
    lora.base_model_name_or_path = None  # PEFT would look it up on the Hub
    model.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    names = {str(class_id): name for class_id, name in (id2label or {}).items()}
    content = {"num_classes": model.config.num_classes, "id2label": names}
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


def load_lora(model: DiTModel, source: str | Path, **hub: Any) -> dict[int, str] | None:
    """Put an adapter into a model, in place, with its set of classes.

    Args:
        model: Model that the adapter was trained for, without an adapter.
        source: Folder of the adapter, or its id on the Hub.
        **hub: Options of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The adapter's `id2label`, or None if its classes have no names.

    Raises:
        ImportError: If PEFT is not installed.
        ValueError: If the source is no adapter, or was trained for another model. The model is then unchanged.
    """
    _require_peft()
    if has_adapter(model):
        raise ValueError("an adapter is loaded already: fuse or unload it first")
    folder = (
        Path(source) if Path(source).is_dir() else Path(snapshot_download(str(source), allow_patterns=FILES, **hub))
    )
    for name in (CONFIG, WEIGHTS, CLASSES):
        if not (folder / name).is_file():
            raise ValueError(f"{source} has no {name}: an adapter of this package is {CONFIG}, {WEIGHTS}, {CLASSES}")
    classes = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    _check_fit(model, folder, classes["num_classes"])
    before = (model.y_embedder, model.config.num_classes)
    if model.y_embedder is not None:
        carry_classes(model, [None] * classes["num_classes"])  # the size; the adapter brings the rows
    model.load_adapter(str(folder), adapter_name=ADAPTER)
    model._before_lora = before
    return {int(class_id): name for class_id, name in classes["id2label"].items()} or None


def _check_fit(model: DiTModel, folder: Path, num_classes: int) -> None:
    """Refuse an adapter of another model before anything changes."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is cut short or no safetensors file: {error}") from error
    expected = dict(_expected_sides(model, num_classes))
    rank = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("r")
    for key, shape in shapes.items():
        side, length = expected.get(key, (0, None))
        if len(shape) != 2 or shape[side] != length or (LABELS not in key and shape[1 - side] != rank):
            raise ValueError(f"the adapter has {key} {shape}, which does not fit: load the model it was made for")
    if missing := expected.keys() - shapes.keys():
        raise ValueError(f"the adapter has no {min(missing)}: load the model it was made for")


def _expected_sides(model: DiTModel, num_classes: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each key of an adapter for a model, with one of its dimensions and the length of that dimension."""
    prefix, targets = "base_model.model", lora_targets(model)
    for name, module in model.named_modules():
        if re.fullmatch(targets, name):
            yield f"{prefix}.{name}.lora_A.weight", (1, module.in_features)
            yield f"{prefix}.{name}.lora_B.weight", (0, module.out_features)
    if model.y_embedder is not None:
        rows = num_classes + (model.config.class_dropout_prob > 0)
        yield f"{prefix}.{LABELS}.embedding_table.weight", (0, rows)


def merge_lora(model: DiTModel, scale: float = 1.0) -> None:
    """Add a model's adapter to its weights, in place; the result is a plain model that saves as any other.

    Args:
        model: Model with an adapter.
        scale: Strength of the adapter: 1 as trained, 0 without it. The label table is the adapter's at any scale.

    Raises:
        ValueError: If there is no adapter, or merging gives weights that are not finite.
    """
    if not has_adapter(model):
        raise ValueError("the model has no adapter: load one first")
    _take_out(model, scale)
    model.__dict__.pop("_before_lora", None)


def merged(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Return a pipeline whose adapter is merged into a copy of the model; without an adapter, the pipeline itself."""
    if not has_adapter(pipeline.transformer):
        return pipeline
    model = copy.deepcopy(pipeline.transformer)
    merge_lora(model)
    other = copy.copy(pipeline)
    other.register_modules(transformer=model)
    return other


def remove_lora(model: DiTModel) -> None:
    """Take the adapter out of a model, in place, and restore the classes that the model had before."""
    if not has_adapter(model):
        return
    _take_out(model, None)
    embedder, num_classes = model.__dict__.pop("_before_lora", (model.y_embedder, model.config.num_classes))
    model.config.num_classes = num_classes
    model.y_embedder = embedder.to(device=model.device, dtype=model.dtype) if embedder is not None else None


def _take_out(model: DiTModel, merge_scale: float | None) -> None:
    """Replace each layer of PEFT by the plain layer inside, merged with the adapter if a scale is given."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            if merge_scale is not None:
                module.scale_layer(merge_scale)
                module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            kept = module.original_module if merge_scale is None else module.modules_to_save[ADAPTER]
            model.set_submodule(name, kept)
    model.requires_grad_(True)
    model.pos_embed.requires_grad_(False)
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.__dict__.pop("_weight_conversions", None)  # transformers would save the plain weights under PEFT's names
