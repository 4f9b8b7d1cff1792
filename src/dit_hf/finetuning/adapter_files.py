"""The folder of an adapter: PEFT's configuration and weights, and the classes of the label table among the weights."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..modeling_dit import DiTModel, LabelEmbedder
from .classes import carry_classes
from .lora import CLASSES, CONFIG, FILES, LABELS, WEIGHTS, lora_targets

__all__ = ["FILES", "Adapter", "Labels", "read_adapter"]

PREFIX = "base_model.model."  # of PEFT's keys
TABLE = f"{PREFIX}{LABELS}.embedding_table.weight"


@dataclass
class Labels:
    """A label table and its classes.

    Args:
        embedder: Table; None for an unconditional model.
        num_classes: Number of classes.
        id2label: Names of the classes; None if they have none, or if only the pipeline knows them.
    """

    embedder: LabelEmbedder | None
    num_classes: int
    id2label: dict[int, str] | None = None


@dataclass
class Adapter:
    """An adapter as it was read.

    Args:
        config: Configuration for PEFT.
        matrices: Matrices of LoRA, by PEFT's names.
        labels: Label table.
    """

    config: Any
    matrices: dict[str, Tensor]
    labels: Labels


def read_adapter(model: DiTModel, folder: Path, source: str) -> Adapter:
    """Read the adapter of a model from its folder.

    Args:
        model: Model that the adapter was trained for; it is not changed.
        folder: Folder of the adapter.
        source: What the user called it.

    Raises:
        ValueError: If files are missing or damaged, or the adapter is of another model.
    """
    from peft import LoraConfig

    for name in (CONFIG, WEIGHTS, CLASSES):
        if not (folder / name).is_file():
            raise ValueError(f"{source} has no {name}: an adapter of this package is {CONFIG}, {WEIGHTS}, {CLASSES}")
    classes = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is cut short or no safetensors file: {error}") from error
    rank = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("r")
    _check_fit(model, tensors, classes["num_classes"], rank)
    trained = classes.get("sample_size", model.config.sample_size)  # earlier versions did not write it
    if trained != model.config.sample_size:
        warnings.warn(
            f"the adapter {source} was trained on latents of size {trained}, and the model draws "
            f"{model.config.sample_size}: call the pipeline with height, width and the position_policy of the training",
            stacklevel=4,  # of the caller of `load_lora_weights`
        )
    config = LoraConfig.from_pretrained(folder)
    config.modules_to_save, config.inference_mode = None, True  # the label table is exchanged as a whole
    table = tensors.pop(TABLE, None)  # (K' + 1, D), or (K', D) without a null class
    embedder = None if table is None else _embedder(model, table, classes["num_classes"])
    id2label = {int(class_id): name for class_id, name in classes["id2label"].items()} or None
    matrices = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    return Adapter(config, matrices, Labels(embedder, classes["num_classes"], id2label))


def _embedder(model: DiTModel, table: Tensor, num_classes: int) -> LabelEmbedder | None:
    """Return the label table of an adapter as a module of the model's kind."""
    own = model.y_embedder, model.config.num_classes
    carry_classes(model, [None] * num_classes)  # the size; the adapter brings the rows
    embedder = model.y_embedder
    model.y_embedder, model.config.num_classes = own
    with torch.no_grad():
        embedder.embedding_table.weight.copy_(table)
    return embedder


def _check_fit(model: DiTModel, tensors: Mapping[str, Tensor], num_classes: int, rank: Any) -> None:
    """Refuse an adapter of another model before anything changes."""
    expected = dict(_expected_sides(model, num_classes))
    for key, tensor in tensors.items():
        side, length = expected.get(key, (0, None))
        shape = tuple(tensor.shape)
        if len(shape) != 2 or shape[side] != length or (LABELS not in key and shape[1 - side] != rank):
            raise ValueError(f"the adapter has {key} {shape}, which does not fit: load the model it was made for")
    if missing := expected.keys() - tensors.keys():
        raise ValueError(f"the adapter has no {min(missing)}: load the model it was made for")


def _expected_sides(model: DiTModel, num_classes: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each key of an adapter for a model, with one of its dimensions and the length of that dimension."""
    targets = lora_targets(model)
    for name, module in model.named_modules():
        if re.fullmatch(targets, name):
            yield f"{PREFIX}{name}.lora_A.weight", (1, module.in_features)
            yield f"{PREFIX}{name}.lora_B.weight", (0, module.out_features)
    if model.y_embedder is not None:
        yield TABLE, (0, num_classes + (model.config.class_dropout_prob > 0))
