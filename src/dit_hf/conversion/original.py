"""The authors' checkpoints, whose keys are `DiTModel`'s: configurations are inferred, and weights stay bit for bit."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers.utils import logging

from ..configuration_dit import PAPER_SIZES, DiTConfig
from ..modeling_dit import DiTModel
from .assemble import assemble, unwrap
from .deviation import deviation_of
from .safe_load import read_checkpoint
from .stored import CheckpointError, StoredTensor, stored

logger = logging.get_logger(__name__)

# Field of the configuration -> the key and the dimension that tell it. The others are derived from these below.
FIELDS = {
    "hidden_size": ("x_embedder.proj.weight", 0),
    "in_channels": ("x_embedder.proj.weight", 1),
    "patch_size": ("x_embedder.proj.weight", 2),
}
RANKS = {"x_embedder.proj.weight": 4, "pos_embed": 3, "y_embedder.embedding_table.weight": 2}  # of 2 where not said
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
HEADS = {(size.num_hidden_layers, size.hidden_size): size.num_attention_heads for size in PAPER_SIZES.values()}


def from_original(
    source: str | os.PathLike | Mapping[str, Any], *, weights: Literal["ema", "model"] = "ema", **config: Any
) -> DiTModel:
    """Load weights of the original DiT, exactly: every tensor, the position embedding too, is the source's.

    The configuration is inferred from the shapes. The weights are read one at a time and keep their precision.

    Args:
        source: A file of `torch.save` or safetensors that holds a state dict or a training checkpoint (`model`, `ema`,
            `opt`, `args`), or either in memory.
        weights: Which of a training checkpoint's two; a bare state dict has no choice.
        **config: Fields of `DiTConfig` that shapes do not tell: `num_attention_heads` of a size that is not the
            paper's, a rectangular `sample_size`, `class_dropout_prob=0` for a table without a null class.

    Raises:
        CheckpointError: If the source is damaged or of another model; the message names the key or the reason.
        ValueError: If a field of the configuration is unknown or contradicts the weights.
    """
    content = source if isinstance(source, Mapping) else read_checkpoint(Path(source))
    tensors = _state_dict(content, weights)
    return assemble(_inferred_config(tensors, config), tensors)


def to_original(model: DiTModel) -> dict[str, Tensor]:
    """Give the weights under the original's keys; they share the model's memory.

    A warning says how far the original's output is from the model's, where its fixed frequencies are not the model's.

    Args:
        model: A model with adaLN-Zero blocks, compiled or not.

    Raises:
        ValueError: If the original has no such blocks.
    """
    model = unwrap(model)
    if model.config.block_type != "adaln_zero":
        raise ValueError(f"block_type={model.config.block_type!r}: the original's checkpoints have 'adaln_zero' only")
    deviation = deviation_of(model, timestep_freq_shift=0.0, mlp_norm_eps=1e-6)
    if deviation:
        logger.warning(f"The original computes these weights otherwise: {deviation}.")
    return {key: tensor.detach() for key, tensor in model.state_dict().items()}


def _state_dict(content: Mapping[str, Any], weights: str) -> dict[str, StoredTensor]:
    """The tensors of one model, without the prefixes of wrappers."""
    if weights not in ("ema", "model"):
        raise ValueError(f"weights={weights!r}: choose from ema, model")
    if any(name in content for name in ("ema", "model")):
        if not isinstance(content.get(weights), Mapping):
            raise CheckpointError(
                f"the training checkpoint holds {', '.join(map(str, content))}, no {weights!r}: pass weights="
                f"{'model' if weights == 'ema' else 'ema'!r} for the other"
            )
        content = content[weights]
    tensors: dict[str, StoredTensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, StoredTensor | Tensor):
            raise CheckpointError(f"{key!r} is a {type(value).__name__}: a state dict has tensors by name only")
        name = WRAPPERS.sub("", key)
        if name in tensors:
            raise CheckpointError(f"{name} is there twice, with and without the prefix of a wrapper")
        tensors[name] = value if isinstance(value, StoredTensor) else stored(value)
    return tensors


def _inferred_config(tensors: Mapping[str, StoredTensor], chosen: Mapping[str, Any]) -> DiTConfig:
    """The configuration that the shapes tell, beside the fields that the caller gives."""

    def side(key: str, dimension: int) -> int:
        if key not in tensors:
            raise CheckpointError(f"the checkpoint lacks {key}, so it is of another model than DiT")
        if len(tensors[key].shape) != RANKS.get(key, 2) or 0 in tensors[key].shape:
            raise CheckpointError(f"{key} has the shape {tensors[key].shape}, so the checkpoint is of another model")
        return tensors[key].shape[dimension]

    fields: dict[str, Any] = {field: side(*where) for field, where in FIELDS.items()}
    width, channels, patch = (fields[name] for name in FIELDS)
    layers = sorted({int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d{1,9})\.", key))})
    if layers != list(range(len(layers))):
        raise CheckpointError(f"its blocks are numbered {', '.join(map(str, layers))}: some are missing")
    fields["num_hidden_layers"] = len(layers)
    fields["mlp_ratio"] = side("blocks.0.mlp.fc1.weight", 0) / width
    fields["learn_sigma"] = side("final_layer.linear.weight", 0) == 2 * channels * patch**2
    fields["num_classes"], fields["class_dropout_prob"] = _classes(tensors, side, chosen)
    if "sample_size" not in chosen:
        grid = math.isqrt(side("pos_embed", 1))
        if grid**2 != side("pos_embed", 1):
            raise CheckpointError(f"pos_embed has {side('pos_embed', 1)} tokens, no square: pass sample_size=(h, w)")
        fields["sample_size"] = grid * patch
    if "num_attention_heads" not in chosen:
        if (len(layers), width) not in HEADS:
            raise CheckpointError(
                f"{len(layers)} layers of width {width} are none of the paper's sizes, and no shape tells the number "
                "of heads: pass num_attention_heads"
            )
        fields["num_attention_heads"] = HEADS[len(layers), width]
    return DiTConfig(**{**fields, **chosen})


def _classes(tensors: Mapping[str, StoredTensor], side: Any, chosen: Mapping[str, Any]) -> tuple[int, float]:
    """Number of classes and label dropout: the last row of the table is the null class, where there is one."""
    key = "y_embedder.embedding_table.weight"
    if key not in tensors:
        return 0, 0.1
    rows = side(key, 0)
    dropout = chosen.get("class_dropout_prob", 0.0 if chosen.get("num_classes") == rows else 0.1)
    return rows - (dropout > 0), dropout
