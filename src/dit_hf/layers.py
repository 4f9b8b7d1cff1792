"""The layers that blocks are made of: linear maps with their initialisation, norm, feed-forward and attention.

A layer of a block is a `BlockLayer`: it names those of its parts that LoRA adapts and those that a cache may leave out.
A new layer is a new subclass; LoRA and the caches read the names, and need no change.

Shapes: B samples, S tokens of a block, K conditioning tokens, D width, M width of the feed-forward, h heads of d = D/h.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_dit import DiTConfig

# The formatter would undo the columns of shapes.
# fmt: off


class ZeroLinear(nn.Linear):
    """A Linear that starts at zero; the initialisation knows it by its class."""


class NormalLinear(nn.Linear):
    """A Linear that starts at N(0, 0.02) and takes an input of any dtype; the initialisation knows it by its class."""

    def forward(self, x: Tensor) -> Tensor:
        # Only here is the weight's dtype that of the computation: between forwards it may be stored in another one.
        return super().forward(x.to(self.weight.dtype))


class Norm(nn.LayerNorm):
    """LayerNorm of the float32 residual stream, followed by adaLN's shift and scale if given, and a cast to `dtype`."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps, elementwise_affine=False)

    def forward(
        self, x: Tensor, dtype: torch.dtype, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        x = super().forward(x)                      # (B, S, D)
        if shift is not None and scale is not None:
            x = torch.addcmul(shift, x, 1 + scale)  # (B, S, D), one pass over memory, also if it is not compiled
        return x.to(dtype)


class BlockLayer(nn.Module):
    """A layer of a block, with the names of those of its modules that other parts of the package may touch.

    Args:
        config: The architecture.

    Attributes:
        lora_targets: Linears that LoRA adapts.
        cache_outputs: Modules whose output is what the layer adds to the residual stream. TaylorSeer extrapolates it
            from earlier steps.
        cache_inputs: Modules that only feed `cache_outputs`. They need not run if the output is extrapolated.
        stacked_matrices: Linears whose weight holds several matrices of one shape below each other, with their number.
            The optimiser Muon treats each by itself.
    """

    lora_targets: tuple[str, ...]
    cache_outputs: tuple[str, ...]
    cache_inputs: tuple[str, ...]
    stacked_matrices: Mapping[str, int] = MappingProxyType({})

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config


class Mlp(BlockLayer):
    """The pointwise feed-forward of the paper: two Linears around a GELU, in its tanh form."""

    lora_targets = ("fc1", "fc2")
    cache_outputs = ("fc2",)
    cache_inputs = ("fc1",)

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        width = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.fc2 = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x), approximate="tanh")  # (B, S, M)
        return self.fc2(x)                           # (B, S, D)


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention written out, the only implementation that returns its weights."""
    scores = query @ key.transpose(-2, -1) * scaling                       # (B, h, S, S)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)  # (B, h, S, S)
    return (weights @ value).transpose(1, 2), weights                      # (B, S, h, d)


def attend(config: DiTConfig, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
    """Attend from heads (B, h, S, d) to tokens (B, S, D), by the implementation that the model was loaded with."""
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    scaling = query.shape[-1] ** -0.5
    x, weights = implementation(module, query, key, value, None, scaling=scaling, dropout=0.0)  # (B, S, h, d)
    return x.flatten(2), weights                                                                # (B, S, D)


class Attention(BlockLayer):
    """Self-attention over the tokens of a block.

    `positions` is what `DiTModel.positions` made for the attentions. The paper adds positions to the tokens once,
    before the first block, so that this class ignores them; a rotary attention would turn query and key by them.
    """

    lora_targets = ("qkv", "proj")
    cache_outputs = ("proj",)
    cache_inputs = ("qkv",)
    stacked_matrices = MappingProxyType({"qkv": 3})
    is_causal = False  # transformers' implementations take an attention without this attribute as causal

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        qkv = self.qkv(x).unflatten(-1, (3, self.config.num_attention_heads, -1))  # (B, S, 3, h, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)                             # (B, h, S, d)
        x, weights = attend(self.config, self, query, key, value)                  # (B, S, D)
        return self.proj(x), weights


class CrossAttention(BlockLayer):
    """Attention of a block's tokens over the conditioning tokens [t, y], whose keys and values are handed in."""

    lora_targets = ("q", "kv", "proj")
    cache_outputs = ("proj",)
    cache_inputs = ("q",)
    stacked_matrices = MappingProxyType({"kv": 2})
    is_causal = False

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, kv: Tensor) -> Tensor:
        heads = self.config.num_attention_heads
        query = self.q(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, h, S, d)
        kv = kv.expand(x.shape[0], -1, -1).unflatten(-1, (2, heads, -1))  # (B, K, 2, h, d)
        key, value = kv.permute(2, 0, 3, 1, 4)                        # (B, h, K, d)
        x, _ = attend(self.config, self, query, key, value)           # (B, S, D)
        return self.proj(x)
