"""How much a DiT computes, in closed form: multiply-adds, parameters, training and sampling compute.

The paper's "Gflops" are multiply-adds (MACs) in units of 10^9; one multiply-add is two floating-point operations. Counted
are matrix products, the patch convolution and attention, as torch's `FlopCounterMode` does; not norms, activations,
softmax and other work on single elements.
Legend: N patches, S tokens of a block, K conditioning tokens, D width, M the MLP's width, L blocks, p patch, C channels.
"""

from dataclasses import dataclass

from ..configuration_dit import DiTConfig

TIMESTEP_CHANNELS = 256
MODULATIONS = {"adaln": 4, "adaln_zero": 6}  # vectors of width D that a block regresses from its conditioning
TRAINING_FACTOR = 3  # a backward pass costs two forward passes (the paper, section 5.1)


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one forward of one image, by part."""

    patchify: int
    timestep: int
    linears: int  # of the blocks, on tokens: attention's projections, the MLP
    attention: int  # scores and weighted sums: 2 S^2 D a block
    conditioning: int  # modulations, or cross-attention
    final: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(vars(self).values())


def count_macs(config: DiTConfig) -> Macs:
    """Multiply-adds of one forward of one image, exactly as torch counts them.

    Args:
        config: any, of any block design.

    Source: Peebles & Xie 2022, section 3.2 and table 4.
    """
    rows, columns = config.grid_height_width
    n, d, depth, area = rows * columns, config.hidden_size, config.num_hidden_layers, config.patch_size**2
    m, k = int(d * config.mlp_ratio), 1 + bool(config.num_classes)
    s = n + k if config.block_type == "in_context" else n
    modulations = MODULATIONS.get(config.block_type, 0)
    conditioning = modulations * d * d * depth
    if config.block_type == "cross_attention":
        conditioning = depth * (2 * s * d * d + 2 * k * d * d + 2 * s * k * d)  # q and proj; k and v; attention
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
