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


def modulate(x: Tensor, dtype: torch.dtype, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """Apply adaLN's shift and scale (B, 1, D), if given, to normalised tokens (B, S, D), and cast to `dtype`."""
    if shift is not None and scale is not None:
        x = torch.addcmul(shift, x, 1 + scale)  # (B, S, D), one pass over memory, also if it is not compiled
    return x.to(dtype)


class Norm(nn.LayerNorm):
    """LayerNorm of the float32 residual stream, followed by adaLN's shift and scale if given, and a cast to `dtype`."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps, elementwise_affine=False)

    def forward(
        self, x: Tensor, dtype: torch.dtype, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        return modulate(super().forward(x), dtype, shift, scale)  # (B, S, D)


class RmsNorm(nn.RMSNorm):
    """`Norm` without subtracting the mean: x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps, elementwise_affine=False)

    def forward(
        self, x: Tensor, dtype: torch.dtype, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        return modulate(super().forward(x), dtype, shift, scale)  # (B, S, D)


NORMS: dict[str, type[Norm] | type[RmsNorm]] = {"layer": Norm, "rms": RmsNorm}  # `DiTConfig.norm` -> its class


class HeadNorm(nn.RMSNorm):
    """RMS norm of each head's queries or keys, with a learned weight (d,); in float32, whatever the dtype of the input.

    Source: Henry et al. 2020, arXiv 2010.04245, with the RMS norm that later models use.
    """

    def __init__(self, head_size: int) -> None:
        super().__init__(head_size, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)  # (B, S, h, d)


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
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x), approximate="tanh")  # (B, S, M)
        return self.fc2(x)                           # (B, S, D)


class SwiGlu(BlockLayer):
    """A gated feed-forward, fc2(SiLU(gate(x)) * fc1(x)) (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    lora_targets = ("gate", "fc1", "fc2")
    cache_outputs = ("fc2",)
    cache_inputs = ("gate", "fc1")

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.mlp_width)
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.gate(x)) * self.fc1(x)  # (B, S, M)
        return self.fc2(x)                      # (B, S, D)


FEED_FORWARDS: dict[str, type[BlockLayer]] = {"gelu": Mlp, "swiglu": SwiGlu}  # `DiTConfig.mlp` -> its class


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


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Turn each pair of channels (k, k + d/2) of a head by the angle of its token: a rotary embedding.

    With z_k = x_k + i x_(k + d/2), this is z_k exp(i angle_k), so that a query and a key that are both turned meet at
    the difference of their angles (Su et al. 2021, eq. 16).

    Args:
        x: Queries or keys (B, S, h, d). Tokens after the first N, as those of the in-context design, are not turned.
        positions: Cosines, then sines, of the angles of the N tokens: (N, d), (1, N, d), or (B, N, d) if samples have
            tokens of different places.
    """
    cosine, sine = positions.unsqueeze(-2).chunk(2, dim=-1)                 # (B, N, 1, d/2)
    num_turned = positions.shape[-2]
    first, second = x[:, :num_turned].float().chunk(2, dim=-1)              # (B, N, h, d/2)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)
    if num_turned == x.shape[1]:
        return turned                                                       # (B, S, h, d)
    return torch.cat([turned, x[:, num_turned:]], dim=1)


FIRST_VALUE_SHARE = 0.5  # where the share of the first block's values starts (Zhou et al. 2024, section 3.4)


def head_norms(config: DiTConfig) -> tuple[nn.Module, nn.Module]:
    """The norms of an attention's queries and keys, which do nothing without `qk_norm`."""
    head_size = config.hidden_size // config.num_attention_heads
    return (HeadNorm(head_size), HeadNorm(head_size)) if config.qk_norm else (nn.Identity(), nn.Identity())


class Attention(BlockLayer):
    """Self-attention over the tokens of a block.

    Its forward takes what `DiTBlock` hands on: `positions`, the rows of `DiTPositions.attention` that belong to its
    tokens, see `rotate`; and `first_values` (B, S, D), the values of the first block, or None there. It returns the
    tokens to add, the weights if the implementation has them, and `first_values`, which are None without
    `value_residual`.
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
        self.q_norm, self.k_norm = head_norms(config)
        if config.value_residual:
            self.v_mix = nn.Parameter(torch.full((1,), FIRST_VALUE_SHARE))

    def forward(
        self, x: Tensor, positions: Tensor | None = None, first_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        qkv = self.qkv(x).unflatten(-1, (3, self.config.num_attention_heads, -1))  # (B, S, 3, h, d)
        query, key, value = qkv.unbind(2)                                          # (B, S, h, d)
        query, key = self.q_norm(query), self.k_norm(key)
        if self.config.value_residual:
            first_values = value.flatten(2) if first_values is None else first_values
            value = torch.lerp(value, first_values.view_as(value), self.v_mix.to(value.dtype))
        if positions is not None:
            query, key = rotate(query, positions), rotate(key, positions)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))  # (B, h, S, d)
        x, weights = attend(self.config, self, query, key, value)                  # (B, S, D)
        return self.proj(x), weights, first_values


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
        self.q_norm, self.k_norm = head_norms(config)

    def forward(self, x: Tensor, kv: Tensor) -> Tensor:
        heads = self.config.num_attention_heads
        query = self.q_norm(self.q(x).unflatten(-1, (heads, -1))).transpose(1, 2)  # (B, h, S, d)
        kv = kv.expand(x.shape[0], -1, -1).unflatten(-1, (2, heads, -1))  # (B, K, 2, h, d)
        key, value = self.k_norm(kv[:, :, 0]).transpose(1, 2), kv[:, :, 1].transpose(1, 2)  # (B, h, K, d)
        x, _ = attend(self.config, self, query, key, value)           # (B, S, D)
        return self.proj(x)
