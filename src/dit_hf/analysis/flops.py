"""How much a DiT computes and holds, in closed form: multiply-adds, parameters, activations.

The paper's "Gflops" are multiply-adds (MACs) in units of 10^9; one multiply-add is two floating-point operations.
Counted are matrix products, the patch convolution and attention's two products, which some of torch's fused kernels
hide from its `FlopCounterMode`; not norms, activations, softmax and other work on single elements.

The formulas are written out by hand and never derived from the model, so that each can be held against the other. A
block design says which layers it has; what a layer costs is a row of `LAYER_COSTS` below.

Legend: N patches, S tokens of a block, K conditioning tokens, D width, M width of the feed-forward, L blocks, h heads,
p patch. A switch of `DiTConfig` is 1 where it is on and 0 where it is off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..blocks import BLOCKS, AdaLNFinalLayer, FinalLayer
from ..configuration_dit import DiTConfig
from ..layers import Attention, BlockLayer, CrossAttention, Mlp, SwiGlu
from ..vae import vae_shrink_factor

TIMESTEP_CHANNELS = 256
TRAINING_FACTOR = 3  # a backward pass costs two forward passes (the paper, section 5.1)


class Shape(NamedTuple):
    """The numbers that the formulas are made of; the legend above says what they stand for."""

    n: int
    s: int
    k: int
    d: int
    m: int
    depth: int
    heads: int
    area: int  # p^2
    qk_norm: int
    rope: int
    value_residual: int


class LayerCost(NamedTuple):
    """What one layer of a block costs.

    Args:
        linears: Multiply-adds of Linears on the tokens.
        attention: Multiply-adds of the scores and weighted sums of self-attention.
        conditioning: Multiply-adds that depend on the conditioning.
        parameters: Number of parameters.
        activations: Numbers of 4 bytes that the layer keeps for its backward pass, beside its input.
    """

    linears: int = 0
    attention: int = 0
    conditioning: int = 0
    parameters: int = 0
    activations: int = 0


def _attention(x: Shape) -> LayerCost:
    return LayerCost(
        linears=4 * x.s * x.d * x.d,
        attention=2 * x.s * x.s * x.d,
        parameters=4 * x.d * x.d + 4 * x.d + x.qk_norm * 2 * x.d // x.heads + x.value_residual,
        # q, k, v, output; the logarithm of each softmax's denominator; the mixed v; then what the norms keep, of q and
        # of k: normalised, also times the weight, and 1 / deviation; or q and k as turned
        activations=x.s * (4 * x.d + x.heads + x.value_residual * x.d)
        + 2 * x.s * (x.qk_norm * (2 * x.d + x.heads) + (x.rope and not x.qk_norm) * x.d),
    )


def _cross_attention(x: Shape) -> LayerCost:
    products = 2 * x.s * x.d * x.d + 2 * x.k * x.d * x.d + 2 * x.s * x.k * x.d  # q, projection; k, v; attention
    return LayerCost(
        conditioning=products,
        parameters=4 * x.d * x.d + 4 * x.d + x.qk_norm * 2 * x.d // x.heads,
        activations=x.s * (2 * x.d + x.heads)
        + 2 * x.k * x.d  # q, output, logarithms; k, v
        + x.qk_norm * (x.s + x.k) * (2 * x.d + x.heads),  # as in `_attention`
    )


def _mlp(x: Shape) -> LayerCost:
    return LayerCost(
        linears=2 * x.s * x.d * x.m,
        parameters=2 * x.d * x.m + x.m + x.d,
        activations=x.s * 2 * x.m,  # before and after the GELU
    )


def _swiglu(x: Shape) -> LayerCost:
    return LayerCost(
        linears=3 * x.s * x.d * x.m,
        parameters=3 * x.d * x.m + 2 * x.m + x.d,
        activations=x.s * 4 * x.m,  # gate, its SiLU, fc1, their product
    )


LAYER_COSTS: dict[type[BlockLayer], Callable[[Shape], LayerCost]] = {
    Attention: _attention,
    CrossAttention: _cross_attention,
    Mlp: _mlp,
    SwiGlu: _swiglu,
}

# Number of modulations -> numbers of 4 bytes that a block keeps for them, of its S tokens and its width D.
MODULATION_ACTIVATIONS: dict[int, Callable[[int, int], int]] = {
    0: lambda s, d: 0,
    4: lambda s, d: s * 2 * d + 3 * d,  # the two normalised x before shift and scale; SiLU(c), two of 1 + scale
    6: lambda s, d: s * 4 * d + 9 * d,  # and the two branches before their gates; the six modulations
}

FINAL_MODULATIONS: dict[type[FinalLayer], int] = {FinalLayer: 0, AdaLNFinalLayer: 2}


def _row(table: Mapping[Any, Any], key: Any, name: str) -> Any:
    if key not in table:
        known = getattr(key, "__name__", key)
        raise ValueError(f"{name} of dit_hf/analysis/flops.py has no row for {known}: add one, it is counted by hand")
    return table[key]


def _shape(config: DiTConfig) -> Shape:
    rows, columns = config.grid_height_width
    n, k = rows * columns, 1 + bool(config.num_classes)
    s = n + k if BLOCKS[config.block_type].extends_sequence else n
    m = int(config.hidden_size * config.mlp_ratio)
    if config.mlp == "swiglu":
        m = max(8, 8 * round(m / 12))  # 2/3 of it, a multiple of 8
    return Shape(
        n,
        s,
        k,
        config.hidden_size,
        m,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.patch_size**2,
        qk_norm=int(config.qk_norm),
        rope=int(config.position_embedding != "sincos"),
        value_residual=int(config.value_residual),
    )


def _layers(config: DiTConfig, shape: Shape) -> LayerCost:
    """The sum over the layers of a block."""
    layers = BLOCKS[config.block_type].layers(config).values()
    costs = [_row(LAYER_COSTS, layer, "LAYER_COSTS")(shape) for layer in layers]
    return LayerCost(*map(sum, zip(*costs, strict=True)))


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one forward of one image, by part.

    Args:
        patchify: Those of the patch convolution.
        timestep: Those of the MLP that embeds the timestep.
        linears: Those of the blocks' Linears on tokens: projections of self-attention, and feed-forward.
        attention: Those of the scores and weighted sums of self-attention, 2 S^2 D a block.
        conditioning: Those of the blocks' modulations, or of all of cross-attention.
        final: Those of the last layer, its modulation included.
    """

    patchify: int
    timestep: int
    linears: int
    attention: int
    conditioning: int
    final: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(vars(self).values())


def count_macs(config: DiTConfig) -> Macs:
    """Count the multiply-adds of one forward of one image.

    Args:
        config: Architecture, of any size and block design.

    Raises:
        ValueError: If a layer of the block design has no row in a table of costs.

    Source: Peebles & Xie 2022, section 3.2 and table 4.
    """
    block, shape = BLOCKS[config.block_type], _shape(config)
    layers, d, depth = _layers(config, shape), shape.d, shape.depth
    final_modulations = _row(FINAL_MODULATIONS, block.final_layer, "FINAL_MODULATIONS")
    return Macs(
        patchify=shape.n * d * shape.area * config.in_channels,
        timestep=TIMESTEP_CHANNELS * d + d * d,
        linears=depth * layers.linears,
        attention=depth * layers.attention,
        conditioning=depth * (layers.conditioning + block.num_modulations * d * d),
        final=shape.n * d * shape.area * config.out_channels + final_modulations * d * d,
    )


def count_gmacs(config: DiTConfig) -> float:
    """Count the multiply-adds of one forward of one image in units of 10^9, which the paper prints as "Gflops"."""
    return count_macs(config).total / 1e9


def count_parameters(config: DiTConfig) -> int:
    """Count the parameters of a model, the position embedding included.

    Args:
        config: Architecture, of any size and block design.

    Raises:
        ValueError: If a layer of the block design has no row in a table of costs.
    """
    design, shape = BLOCKS[config.block_type], _shape(config)
    d, area = shape.d, shape.area
    modulation = d * d + d
    patchify = area * config.in_channels * d + d
    timestep = TIMESTEP_CHANNELS * d + d + d * d + d
    labels = (config.num_classes + config.has_null_class) * d
    positions = 0 if config.position_embedding == "rope" else shape.n * d
    block = _layers(config, shape).parameters + design.num_modulations * modulation
    final = (d + 1) * area * config.out_channels
    final += _row(FINAL_MODULATIONS, design.final_layer, "FINAL_MODULATIONS") * modulation
    return patchify + positions + timestep + labels + shape.depth * block + final


def count_activations(config: DiTConfig, *, checkpointing: bool = False) -> int:
    """Count the numbers of 4 bytes that a training forward of one image keeps for its backward pass, at their peak.

    The forward is in float32 with fused attention, which keeps one number per token and head; "eager" keeps S of them.
    The table of a rotary embedding is left out, as all images of a batch share it.

    Args:
        config: Architecture, of any size and block design.
        checkpointing: Whether gradient checkpointing keeps only the input of each block and recomputes one at a time.

    Raises:
        ValueError: If a layer of the block design has no row in a table of costs.
    """
    design, shape = BLOCKS[config.block_type], _shape(config)
    n, s, k, d, depth = shape.n, shape.s, shape.k, shape.d, shape.depth
    height, width = config.sample_height_width
    kept_by_norm = 2 * d + (1 if config.norm == "rms" else 2)  # input, output, mean if it is subtracted, deviation
    norms = len(design.layers(config)) * s * kept_by_norm  # one before each layer
    modulations = _row(MODULATION_ACTIVATIONS, design.num_modulations, "MODULATION_ACTIVATIONS")(s, d)
    block = norms + _layers(config, shape).activations + modulations
    labels = 2 if config.num_classes else 0  # int64
    outside = s * d + n * (kept_by_norm - d) + config.in_channels * height * width + TIMESTEP_CHANNELS + 2 * d + labels
    if _row(FINAL_MODULATIONS, design.final_layer, "FINAL_MODULATIONS"):
        outside += n * d + 3 * d
    elif design.cross_attention or checkpointing:
        outside += k * d  # the tokens [t, y]
    if checkpointing:
        return outside + depth * s * d + block + config.value_residual * 3 * s * d  # q, k, v of the first block
    return outside + depth * block


@dataclass(frozen=True)
class VaeMacs:
    """Multiply-adds of one image through a VAE."""

    encoder: int
    decoder: int


# The configuration of the VAE that the paper uses (Rombach et al. 2022, f = 8), of which it counts no Gflops.
STABLE_DIFFUSION_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}


def count_vae_macs(vae_config: Mapping[str, Any], latent_height_width: tuple[int, int]) -> VaeMacs:
    """Count the multiply-adds of a VAE by torch's own counter, on tensors without storage.

    Args:
        vae_config: Configuration of diffusers' `AutoencoderKL`.
        latent_height_width: Height and width of the latents, in latent pixels.
    """
    import torch
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    def count(work: Any, *arguments: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work(*arguments)
        return counter.get_total_flops() // 2

    with torch.device("meta"):
        vae = AutoencoderKL.from_config({"act_fn": "silu", **vae_config}).eval()
        shrink = vae_shrink_factor(vae.config)
        height, width = latent_height_width
        images = torch.empty(1, vae.config.in_channels, height * shrink, width * shrink)
        latents = torch.empty(1, vae.config.latent_channels, height, width)
    return VaeMacs(count(vae.encode, images), count(vae.decode, latents))
