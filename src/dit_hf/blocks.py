"""The four block designs of the paper and the two final layers: how timestep and label enter a transformer.

A block is a ViT block, x + attention(norm(x)) followed by x + mlp(norm(x)). The conditioning, an embedding of the
timestep t and of the label y, can enter it in four ways (Peebles & Xie 2022, section 3.2):

    in-context        [t, y] are two more tokens of the sequence, removed after the last block
    cross-attention   between attention and mlp, the tokens attend to [t, y]
    adaLN             norm(x) * (1 + scale(c)) + shift(c), with c = t + y: one small Linear per block
    adaLN-Zero        adaLN, and each branch times gate(c), which starts at zero: a fresh block is the identity

The paper finds adaLN-Zero the best at nearly the least compute. A design states its own facts as class attributes of
its block; LoRA, the caches and the counters of `analysis` read them.

Shapes: B samples, N patches, S tokens of a block (N, or N + K in-context), D width, K = 2 conditioning tokens [t, y]
(1 without classes), p patch size, C output channels. The conditioning may have B = 1, shared by a whole batch.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_dit import DiTConfig
from .layers import FEED_FORWARDS, NORMS, Attention, BlockLayer, CrossAttention, ZeroLinear

# The formatter would undo the columns of shapes.
# fmt: off


class FinalLayer(nn.Module):
    """A norm, and a Linear from each token to its patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = NORMS[config.norm](config.hidden_size)
        self.linear = ZeroLinear(config.hidden_size, config.patch_size**2 * config.out_channels)

    def condition(self, embedding: Tensor) -> Tensor | None:
        return None

    def forward(self, x: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        return self.linear(self.norm_final(x, embedding.dtype))  # (B, N, p*p*C)


class AdaLNFinalLayer(FinalLayer):
    """The final layer with an adaptive norm."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ZeroLinear(config.hidden_size, 2 * config.hidden_size))

    def condition(self, embedding: Tensor) -> Tensor:
        return self.adaLN_modulation(embedding)  # (B, 2D)

    def forward(self, x: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        modulation = self.condition(embedding) if derived is None else derived  # (B, 2D)
        shift, scale = modulation.float()[:, None].chunk(2, dim=-1)             # (B, 1, D)
        return self.linear(self.norm_final(x, embedding.dtype, shift, scale))   # (B, N, p*p*C)


class DiTBlock(GradientCheckpointingLayer):
    """What all designs share: two norms, an attention and a feed-forward. A subclass adds the conditioning.

    The forward of a block takes the residual stream `hidden_states` (B, S, D), in float32; the conditioning's
    `embedding`, (B, D) or (B, K, D), whose dtype is that of the matrix products; `derived`, the result of `condition`,
    or None to compute it; and what it hands to its attention: `positions`, the rows of `DiTPositions.attention` that
    belong to its tokens, and `first_values` (B, S, D), None for the first block. It returns the residual stream, and
    with `value_residual` the pair of it and the first block's values, which the next block takes.

    Attributes:
        attention: Class of the self-attention, `attn`.
        feed_forward: Class of the feed-forward, `mlp`; None for the one that `DiTConfig.mlp` names.
        cross_attention: Class of the cross-attention over the conditioning, `cross_attn`; None without one.
        final_layer: Class of the model's last layer.
        sums_embeddings: Whether the conditioning is c = t + y (B, D); if not, it is the tokens [t, y] (B, K, D).
        extends_sequence: Whether the tokens [t, y] join the sequence of patches.
        num_modulations: Number of vectors of width D that a block regresses from c.
    """

    attention: type[Attention] = Attention
    feed_forward: type[BlockLayer] | None = None
    cross_attention: type[CrossAttention] | None = None
    final_layer: type[FinalLayer] = FinalLayer
    sums_embeddings = False
    extends_sequence = False
    num_modulations = 0

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = NORMS[config.norm](config.hidden_size)
        self.attn = self.attention(config)
        self.norm2 = NORMS[config.norm](config.hidden_size, eps=config.mlp_norm_eps)
        self.mlp = self.layers(config)["mlp"](config)

    @classmethod
    def layers(cls, config: DiTConfig) -> dict[str, type[BlockLayer]]:
        """The classes of a block's layers, by the names of their attributes.

        Raises:
            ValueError: If the configuration and the design each ask for a feed-forward of their own.
        """
        if cls.feed_forward is not None and config.mlp != "gelu":
            raise ValueError(f"mlp={config.mlp!r}: block_type={config.block_type!r} has its own, leave mlp out")
        feed_forward = cls.feed_forward or FEED_FORWARDS[config.mlp]
        stated = {"attn": cls.attention, "cross_attn": cls.cross_attention, "mlp": feed_forward}
        return {name: layer for name, layer in stated.items() if layer is not None}

    def check_layers(self, config: DiTConfig) -> None:
        """Refuse a block that is not made of the layers it states, or a layer that leaves Linears unmentioned.

        Raises:
            ValueError: With the class, and the attribute to set.
        """
        for name, stated in self.layers(config).items():
            layer, owner = getattr(self, name), f"{type(self).__name__}.{name}"
            if type(layer) is not stated:
                raise ValueError(f"{owner} is a {type(layer).__name__}, the class states {stated.__name__}: state both")
            for fact in ("lora_targets", "cache_outputs", "cache_inputs"):
                modules = {inner for inner, _ in layer.named_modules()}
                if not modules.issuperset(getattr(stated, fact, [None])):
                    raise ValueError(f"{stated.__name__}.{fact} names no modules of the layer: state a tuple of names")
            linears = {inner for inner, module in layer.named_modules() if isinstance(module, nn.Linear)}
            if linears.difference(stated.lora_targets) and "lora_targets" not in vars(stated):
                raise ValueError(f"{stated.__name__} has Linears {sorted(linears)}: state which are its lora_targets")

    def condition(self, embedding: Tensor) -> Tensor | None:
        """Compute what this block derives from the conditioning alone, whatever the latents."""
        return None


def answer(x: Tensor, first_values: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """What a block returns: the residual stream, with the first block's values if later blocks use them."""
    return x if first_values is None else (x, first_values)


class InContextBlock(DiTBlock):
    """A plain ViT block: the tokens [t, y] stand in the sequence, after the patches."""

    extends_sequence = True

    def forward(
        self,
        hidden_states: Tensor,
        embedding: Tensor,
        derived: Tensor | None = None,
        positions: Tensor | None = None,
        first_values: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x, dtype = hidden_states, embedding.dtype  # (B, S, D)
        attended, _, first_values = self.attn(self.norm1(x, dtype), positions, first_values)
        x = x + attended
        return answer(x + self.mlp(self.norm2(x, dtype)), first_values)


class CrossAttentionBlock(DiTBlock):
    """A cross-attention over the tokens [t, y] stands between self-attention and MLP."""

    cross_attention = CrossAttention

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.norm_cross = NORMS[config.norm](config.hidden_size)
        self.cross_attn = self.cross_attention(config)

    def condition(self, embedding: Tensor) -> Tensor:
        return self.cross_attn.kv(embedding)  # (B, K, 2D)

    def forward(
        self,
        hidden_states: Tensor,
        embedding: Tensor,
        derived: Tensor | None = None,
        positions: Tensor | None = None,
        first_values: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        kv = self.condition(embedding) if derived is None else derived  # (B, K, 2D)
        x, dtype = hidden_states, embedding.dtype                       # (B, S, D)
        attended, _, first_values = self.attn(self.norm1(x, dtype), positions, first_values)
        x = x + attended
        x = x + self.cross_attn(self.norm_cross(x, dtype), kv)
        return answer(x + self.mlp(self.norm2(x, dtype)), first_values)


class AdaLNBlock(DiTBlock):
    """adaLN: the shift and scale of both norms are regressed from c (Perez et al. 2018)."""

    final_layer = AdaLNFinalLayer
    sums_embeddings = True
    num_modulations = 4  # shift and scale of both norms

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        width = self.num_modulations * config.hidden_size
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ZeroLinear(config.hidden_size, width))

    def condition(self, embedding: Tensor) -> Tensor:
        return self.adaLN_modulation(embedding)  # (B, 4D)

    def forward(
        self,
        hidden_states: Tensor,
        embedding: Tensor,
        derived: Tensor | None = None,
        positions: Tensor | None = None,
        first_values: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        modulation = self.condition(embedding) if derived is None else derived                     # (B, 4D)
        shift_msa, scale_msa, shift_mlp, scale_mlp = modulation.float()[:, None].chunk(4, dim=-1)  # (B, 1, D)
        x, dtype = hidden_states, embedding.dtype                                                  # (B, S, D)
        attended, _, first_values = self.attn(self.norm1(x, dtype, shift_msa, scale_msa), positions, first_values)
        x = x + attended
        return answer(x + self.mlp(self.norm2(x, dtype, shift_mlp, scale_mlp)), first_values)


class AdaLNZeroBlock(AdaLNBlock):
    """adaLN-Zero: adaLN with gates that start at zero, so that a fresh block is the identity (Goyal et al. 2017)."""

    num_modulations = 6  # shift, scale and gate of both branches

    def forward(
        self,
        hidden_states: Tensor,
        embedding: Tensor,
        derived: Tensor | None = None,
        positions: Tensor | None = None,
        first_values: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        modulation = self.condition(embedding) if derived is None else derived   # (B, 6D)
        chunks = modulation.float()[:, None].chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = chunks  # (B, 1, D)
        x, dtype = hidden_states, embedding.dtype                                # (B, S, D)
        attended, _, first_values = self.attn(self.norm1(x, dtype, shift_msa, scale_msa), positions, first_values)
        x = torch.addcmul(x, gate_msa, attended)
        return answer(torch.addcmul(x, gate_mlp, self.mlp(self.norm2(x, dtype, shift_mlp, scale_mlp))), first_values)


BLOCKS: dict[str, type[DiTBlock]] = {         # parameters and multiply-adds of XL/2 at 256 px (the paper's table 4)
    "in_context": InContextBlock,             # 449,326,112  119.354 G
    "cross_attention": CrossAttentionBlock,   # 598,090,784  137.603 G
    "adaln": AdaLNBlock,                      # 600,747,296  118.547 G
    "adaln_zero": AdaLNZeroBlock,             # 675,129,632  118.621 G
}
