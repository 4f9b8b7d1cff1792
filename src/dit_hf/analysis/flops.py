"""How much a DiT computes and holds, in closed form: multiply-adds, parameters, activations.

The paper's "Gflops" are multiply-adds (MACs) in units of 10^9; one multiply-add is two floating-point operations.
Counted are matrix products, the patch convolution and attention's two products, which some of torch's fused kernels
hide from its `FlopCounterMode`; not norms, activations, softmax and other work on single elements.
Legend: N patches, S tokens of a block, K conditioning tokens, D width, M the MLP's width, L blocks, h heads, p patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..configuration_dit import DiTConfig
from ..vae import vae_shrink_factor

TIMESTEP_CHANNELS = 256
MODULATIONS = {"adaln": 4, "adaln_zero": 6}  # vectors of width D that a block regresses from its conditioning
TRAINING_FACTOR = 3  # a backward pass costs two forward passes (the paper, section 5.1)


class Shape(NamedTuple):
    """The numbers that the formulas are made of."""

    n: int
    s: int
    k: int
    d: int
    m: int
    depth: int
    area: int  # p^2
    modulations: int


def _shape(config: DiTConfig) -> Shape:
    rows, columns = config.grid_height_width
    n, k = rows * columns, 1 + bool(config.num_classes)
    s = n + k if config.block_type == "in_context" else n
    m, modulations = int(config.hidden_size * config.mlp_ratio), MODULATIONS.get(config.block_type, 0)
    return Shape(n, s, k, config.hidden_size, m, config.num_hidden_layers, config.patch_size**2, modulations)


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one forward of one image, by part.

    Args:
        patchify: the patch convolution.
        timestep: the MLP of the timestep's embedding.
        linears: of the blocks, on tokens: the projections of self-attention, and the MLP.
        attention: scores and weighted sums of self-attention, 2 S^2 D a block.
        conditioning: of the blocks: modulations, or all of cross-attention.
        final: the last layer, its modulation included.
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
    """Multiply-adds of one forward of one image.

    Args:
        config: of any size and block design.

    Source: Peebles & Xie 2022, section 3.2 and table 4.
    """
    n, s, k, d, m, depth, area, modulations = _shape(config)
    conditioning = depth * modulations * d * d
    if config.block_type == "cross_attention":
        conditioning = depth * (2 * s * d * d + 2 * k * d * d + 2 * s * k * d)  # q, projection; k, v; attention
    return Macs(
        patchify=n * d * area * config.in_channels,
        timestep=TIMESTEP_CHANNELS * d + d * d,
        linears=depth * (4 * s * d * d + 2 * s * d * m),
        attention=depth * 2 * s * s * d,
        conditioning=conditioning,
        final=n * d * area * config.out_channels + (2 * d * d if modulations else 0),
    )


def count_gmacs(config: DiTConfig) -> float:
    """Multiply-adds of one forward of one image, in units of 10^9; the paper prints these as "Gflops"."""
    return count_macs(config).total / 1e9


def count_parameters(config: DiTConfig) -> int:
    """Parameters of a model, the position embedding included.

    Args:
        config: of any size and block design.
    """
    n, _, _, d, m, depth, area, modulations = _shape(config)
    patchify = area * config.in_channels * d + d
    timestep = TIMESTEP_CHANNELS * d + d + d * d + d
    labels = (config.num_classes + config.has_null_class) * d
    block = 4 * d * d + 4 * d + 2 * d * m + m + d + modulations * (d * d + d)
    if config.block_type == "cross_attention":
        block += 4 * d * d + 4 * d
    final = (d + 1) * area * config.out_channels + (2 * (d * d + d) if modulations else 0)
    return patchify + n * d + timestep + labels + depth * block + final


def count_activations(config: DiTConfig, *, checkpointing: bool = False) -> int:
    """Numbers of 4 bytes that a training forward of one image in float32 keeps for its backward pass, at their peak.

    With fused attention, which keeps one number a token and head; "eager" keeps S of them.

    Args:
        config: of any size and block design.
        checkpointing: whether gradient checkpointing keeps only the input of each block and recomputes one at a time.
    """
    n, s, k, d, m, depth, _, modulations = _shape(config)
    heads, (height, width) = config.num_attention_heads, config.sample_height_width
    # the norms' input, mean, deviation and output; q k v, attention's output and logarithms; two of the MLP's width
    block = s * (8 * d + 2 * m + heads + 4)
    if modulations:
        block += s * 2 * d + 3 * d  # the normalised x before modulation; SiLU(c), two of 1 + scale
    if config.block_type == "adaln_zero":
        block += s * 2 * d + 6 * d  # the two branches before their gates; the gates
    if config.block_type == "cross_attention":
        block += s * (4 * d + heads + 2) + 2 * k * d  # a norm, q, attention's output twice; k and v
    labels = 2 if config.num_classes else 0  # int64
    outside = s * d + n * (d + 2) + config.in_channels * height * width + TIMESTEP_CHANNELS + 2 * d + labels
    if modulations:
        outside += n * d + 3 * d
    elif config.block_type == "cross_attention" or checkpointing:
        outside += k * d  # the tokens [t, y]
    return outside + (depth * s * d + block if checkpointing else depth * block)


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
    """Multiply-adds of a VAE by torch's own counter, on tensors without storage.

    Args:
        vae_config: of diffusers' `AutoencoderKL`.
        latent_height_width: of the latents.
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
