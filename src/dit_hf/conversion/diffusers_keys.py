"""The table between our keys and those of diffusers' `DiTTransformer2DModel`, read in both directions.

The two differ in three ways: modules have other names; query, key and value are three layers there and one here; and
diffusers gives every block a copy of the embedders. For a model of two blocks, our `t_embedder.mlp.0.weight` lies in
`transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight` and the same of block 1.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .assemble import check_keys
from .stored import CheckpointError, StoredTensor

EMBEDDERS = "transformer_blocks.{d}.norm1.emb"
# Module of DiTModel -> modules of diffusers. Several are stacked in ours; {d} without one in ours is a copy per block.
RULES: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": (f"{EMBEDDERS}.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": (f"{EMBEDDERS}.timestep_embedder.linear_2",),
    "y_embedder.embedding_table": (f"{EMBEDDERS}.class_embedder.embedding_table",),
    "blocks.{d}.adaLN_modulation.1": ("transformer_blocks.{d}.norm1.linear",),
    "blocks.{d}.attn.qkv": tuple(f"transformer_blocks.{{d}}.attn1.to_{part}" for part in "qkv"),
    "blocks.{d}.attn.proj": ("transformer_blocks.{d}.attn1.to_out.0",),
    "blocks.{d}.mlp.fc1": ("transformer_blocks.{d}.ff.net.0.proj",),
    "blocks.{d}.mlp.fc2": ("transformer_blocks.{d}.ff.net.2",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
POSITIONS = "pos_embed"  # diffusers computes the position embedding anew and stores none


def places_of(key: str, num_layers: int) -> list[tuple[str, ...]]:
    """Return where diffusers holds one of our tensors.

    Args:
        key: Key of our tensor.
        num_layers: Number of blocks.

    Returns:
        One entry for each copy; an entry holds the keys whose tensors, stacked, are ours.
    """
    if key == POSITIONS:
        return []
    module, _, kind = key.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.", module)
    parts = RULES[re.sub(r"^blocks\.\d+\.", "blocks.{d}.", module)]
    copies = [int(block[1])] if block else range(num_layers if "{d}" in parts[0] else 1)
    return [tuple(f"{part.format(d=d)}.{kind}" for part in parts) for d in copies]


def to_diffusers_keys(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Copy our tensors to diffusers' keys, once for each copy that diffusers has."""
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        for names in places_of(key, num_layers):
            parts = tensor.detach().chunk(len(names))
            state |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    return state


def to_our_keys(
    tensors: Mapping[str, StoredTensor], our_keys: Collection[str], num_layers: int
) -> dict[str, StoredTensor]:
    """Give diffusers' tensors under our keys; whether the copies agree is checked when a tensor is read.

    Args:
        tensors: Tensors by diffusers' keys.
        our_keys: Keys of our model.
        num_layers: Number of blocks.

    Raises:
        CheckpointError: If a key is missing or left over, or if parts do not fit each other.
    """
    places = {key: places_of(key, num_layers) for key in our_keys}
    check_keys({name for copies in places.values() for names in copies for name in names}, tensors)
    return {key: _stacked(tensors, copies) for key, copies in places.items() if copies}


def _stacked(tensors: Mapping[str, StoredTensor], copies: list[tuple[str, ...]]) -> StoredTensor:
    """Return one tensor of ours: the parts stacked along the first dimension, equal in all copies."""
    first = [tensors[name] for name in copies[0]]
    for name in (name for names in copies for name in names):
        shape = tensors[name].shape
        if shape[1:] != first[0].shape[1:] or not shape:
            raise CheckpointError(f"{name} has the shape {shape}, {copies[0][0]} has {first[0].shape}")

    def read_stacked(names: tuple[str, ...]) -> Tensor:
        parts = [tensors[name].read() for name in names]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def read() -> Tensor:
        tensor = read_stacked(copies[0])
        for names in copies[1:]:
            if not torch.equal(read_stacked(names), tensor):
                raise CheckpointError(
                    f"{names[0]} and {copies[0][0]} differ, and DiT has one for all blocks: train and save them as one"
                )
        return tensor

    shape = (sum(part.shape[0] for part in first), *first[0].shape[1:])
    return StoredTensor(shape, first[0].dtype, read)
