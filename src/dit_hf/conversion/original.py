"""The authors' checkpoints, whose keys are `DiTModel`'s: configurations are inferred, and weights stay bit for bit."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers.utils import logging

from ..configuration_dit import PAPER_SIZES, DiTConfig
from ..modeling_dit import DiTModel
from ..weight_files import refuse_adapters
from .assemble import assemble, empty_model, unwrap_dit, weights_of
from .checkpoints import check_left_over, choose_weights, leave_out
from .designs import check_design
from .deviation import deviation_of
from .flow_weights import TRAININGS, to_flow_matching
from .objective import check_arguments, check_flow_arguments, check_name, check_variance, is_certainly_sit
from .safe_load import read_checkpoint
from .stored import CheckpointError, StoredTensor

logger = logging.get_logger(__name__)

# Field of the configuration -> the key and the dimension that tell it. The others are derived from these below.
FIELDS = {
    "hidden_size": ("x_embedder.proj.weight", 0),
    "in_channels": ("x_embedder.proj.weight", 1),
    "patch_size": ("x_embedder.proj.weight", 2),
}
# Number of sides of a tensor; 2 if it is not named here.
RANKS = {"x_embedder.proj.weight": 4, "pos_embed": 3, "y_embedder.embedding_table.weight": 2}
HEADS = {(size.num_hidden_layers, size.hidden_size): size.num_attention_heads for size in PAPER_SIZES.values()}


def from_original(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    weights: str = "ema",
    ignore: str | Sequence[str] = (),
    any_objective: bool = False,
    trained_as: Literal["dit", "sit", "repa"] | None = None,
    **config: Any,
) -> DiTModel:
    """Load weights of the original DiT, exactly: every tensor, the position embedding too, is the source's.

    The configuration is inferred from the shapes. The weights are read one at a time and keep their precision; fp8 is
    the exception and becomes bfloat16, which has a value for each of fp8's.

    Args:
        source: File of `torch.save` or safetensors that holds a state dict or a training checkpoint, or its content in
            memory. Weights are found in dictionaries ("ema", "model", "state_dict" ...) and under prefixes of keys
            ("ema_model.", "module." ...).
        weights: "ema" for the averaged weights or "model" for the others; or the place of the weights in the source,
            such as "state_dict.ema_model".
        ignore: Beginnings of keys that only the training needed, such as "projectors"; a list, or a text with commas.
        any_objective: Whether to load weights that predict something else than DiT's. Such weights need sampling code
            of their own.
        trained_as: Training of the weights: "dit", or "sit" or "repa" for velocities on the linear path, which become a
            model of flow matching (`conversion.flow_weights`). None takes weights for SiT's where the file is certain
            to hold those, and for DiT's otherwise.
        **config: Fields of `DiTConfig` that shapes do not tell: `num_attention_heads` of a size that is not the
            paper's, a rectangular `sample_size`, `class_dropout_prob=0` for a table without a null class.

    Raises:
        CheckpointError: If the source is damaged, of another model or trained for another objective; the message names
            the key or the reason.
        ValueError: If a field of the configuration is unknown or contradicts the weights, or `trained_as` is unknown or
            given beside `any_objective`.
    """
    if trained_as not in (None, "dit", *TRAININGS):
        raise ValueError(f"trained_as={trained_as!r}: choose from dit, {', '.join(TRAININGS)}")
    if trained_as and any_objective:
        raise ValueError(f"trained_as={trained_as!r} and any_objective=True contradict each other: pass one of them")
    content, name = (source, "") if isinstance(source, Mapping) else (read_checkpoint(Path(source)), Path(source).name)
    tensors = leave_out(choose_weights(content, weights), ignore)
    fields = _inferred_config(tensors, config)
    check_left_over(tensors, {name for name, _ in empty_model(fields).named_parameters()})
    model = assemble(fields, tensors)
    if any_objective:
        return model
    if trained_as is None and is_certainly_sit(content, name, model):
        logger.warning(f"{name or 'The source'} holds weights of SiT, which become a model of flow matching.")
        trained_as = "sit"
    if trained_as in TRAININGS:
        check_flow_arguments(content, trained_as)
        return to_flow_matching(model, trained_as)
    check_arguments(content)
    check_variance(model)
    if trained_as is None:
        check_name(name)
    return model


def to_original(model: DiTModel) -> dict[str, Tensor]:
    """Give the weights under the original's keys; they share the model's memory.

    A warning says how far the original's output is from the model's, if its fixed frequencies are not the model's.

    Args:
        model: Model with adaLN-Zero blocks. The model or its layers may be compiled or wrapped otherwise.

    Raises:
        ValueError: If the original has no such blocks; the message names the field. Also if an adapter is loaded.
    """
    model = unwrap_dit(model)
    refuse_adapters(model, "converting")
    check_design(model.config, "the original")
    deviation = deviation_of(model, timestep_freq_shift=0.0, mlp_norm_eps=1e-6)
    if deviation:
        logger.warning(f"The original computes these weights otherwise: {deviation}.")
    return {key: tensor.detach() for key, tensor in weights_of(model).items()}


def _inferred_config(tensors: Mapping[str, StoredTensor], chosen: Mapping[str, Any]) -> DiTConfig:
    """Return the configuration that the shapes tell, with the fields that the caller has chosen."""

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
    """Return the number of classes and the label dropout: the last row of the table is the null class, if any."""
    key = "y_embedder.embedding_table.weight"
    if key not in tensors:
        return 0, 0.1
    rows = side(key, 0)
    dropout = chosen.get("class_dropout_prob", 0.0 if chosen.get("num_classes") == rows else 0.1)
    return rows - (dropout > 0), dropout
