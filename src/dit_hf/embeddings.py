"""Latents to tokens and back, and the embeddings of position, timestep and label (Peebles & Xie 2022, section 3.2).

Shapes: B samples, C latent channels, H x W latent, p patch size, N = (H/p)(W/p) patches, D width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .configuration_dit import DiTConfig
from .layers import NormalLinear

# The formatter would undo the columns of shapes.
# fmt: off


class PatchConv(nn.Conv2d):
    """A convolution that takes an input of any dtype."""

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(latents.to(self.weight.dtype))  # known only here, as in `NormalLinear`


class PatchEmbed(nn.Module):
    """Patchify: cut a latent into p x p patches, row by row, and project each to a token."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = PatchConv(config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.proj(latents)                            # (B, D, H/p, W/p)
        # a view would give the whole residual stream its strides, and every norm would copy it
        return x.flatten(2).transpose(1, 2).contiguous()  # (B, N, D)


def unpatchify(tokens: Tensor, config: DiTConfig, grid_height_width: tuple[int, int] | None = None) -> Tensor:
    """Lay predicted patches (B, N, p*p*C) into a latent (B, C, H, W); the channel is the fastest index of a patch."""
    p = config.patch_size
    rows, columns = grid_height_width or config.grid_height_width
    x = tokens.reshape(-1, rows, columns, p, p, config.out_channels)  # (B, H/p, W/p, p, p, C)
    x = x.permute(0, 5, 1, 3, 2, 4)                                   # (B, C, H/p, p, W/p, p)
    return x.reshape(-1, config.out_channels, rows * p, columns * p)  # (B, C, H, W)


class DiTPositions(NamedTuple):
    """All of a forward that depends on the places of the patches only; `DiTModel.positions` makes it.

    Args:
        embedding: The position embedding (1, N, D), added to the tokens before the first block; None for "rope".
        attention: What each block hands to its attention: for a rotary embedding the cosines and sines of `rotations`,
            (1, N, d) in float32, one row a patch. A block that is given other tokens takes their rows: (1, M, d) if
            they are the same in each sample, (B, M, d) if not. None for "sincos", and so for the paper's designs.
    """

    embedding: Tensor | None
    attention: Tensor | None = None

    @property
    def num_patches(self) -> int:
        """Number N of patches that the positions are for."""
        rows = self.attention if self.embedding is None else self.embedding
        assert rows is not None, "positions without an embedding are those of attentions"
        return rows.shape[-2]


def position_embedding(
    grid_height_width: tuple[int, int], hidden_size: int, trained_height_width: tuple[int, int] | None = None
) -> Tensor:
    """Make the fixed sine-cosine embedding (1, N, D), on the CPU: the column in the first D/2 channels, then the row.

    Example: at 2 x 2 patches and D = 4 there is one frequency, and the patch in row 1, column 0 gets
    [sin 0, cos 0, sin 1, cos 1].

    Args:
        grid_height_width: Rows and columns of patches.
        hidden_size: Width D, a multiple of 4.
        trained_height_width: Rows and columns of patches that the model was trained with. The grid is stretched over
            them, each patch at its centre: of 8 columns over 4, column 3 stands at 1.25. None stretches nothing.

    Source: Vaswani et al. 2017, in two dimensions as in He et al. 2021 (MAE).
    """
    quarter = hidden_size // 4
    cpu = torch.device("cpu")  # float64, which not every default device has
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64, device=cpu) / quarter)        # (D/4,)
    axes = []
    for length, trained in zip(grid_height_width, trained_height_width or grid_height_width, strict=True):
        centre = torch.arange(length, dtype=torch.float64, device=cpu) + 0.5
        axes.append(centre * (trained / length) - 0.5)
    row, column = torch.meshgrid(*axes, indexing="ij")                                          # (H/p, W/p)
    angles = torch.stack([column, row], dim=-1).reshape(-1, 2, 1) * omega                       # (N, 2, D/4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(1, -1, hidden_size).float()  # (1, N, D)


def rotations(
    config: DiTConfig,
    grid_height_width: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    device: torch.device | None = None,
) -> Tensor:
    """Make the cosines and sines (1, N, d) of a rotary embedding in two dimensions, for heads of d channels.

    The patch in row r and column c has d/2 angles: r f_i, and then c f_i, with the d/4 frequencies
    f_i = theta^(-i / (d/4)). Their cosines come first. Everything is computed anew on the device of the model: there is
    no weight that another precision would round, and nothing to store.

    Args:
        config: Architecture, whose `rope_theta` is theta.
        grid_height_width: Rows and columns of patches.
        scale: Distance of neighbouring rows, and of neighbouring columns. The centres of the first patches stay half a
            patch from the border: with 0.5, rows stand at -0.25, 0.25, 0.75 and so on.
        device: Device to compute on.

    Source: Su et al. 2021, arXiv 2104.09864, section 3.2; in two dimensions as in Heo et al. 2024, arXiv 2403.13298,
    section 3.1 ("axial").
    """
    quarter = config.hidden_size // config.num_attention_heads // 4
    dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64  # which MPS lacks
    omega = config.rope_theta ** (-torch.arange(quarter, dtype=dtype, device=device) / quarter)           # (d/4,)
    axes = [
        ((torch.arange(length, dtype=dtype, device=device) + 0.5) * distance - 0.5)[:, None] * omega
        for length, distance in zip(grid_height_width, scale, strict=True)
    ]                                                                                    # (H/p, d/4), (W/p, d/4)
    shape = (*grid_height_width, quarter)
    angles = torch.cat([axes[0][:, None].expand(shape), axes[1][None].expand(shape)], dim=-1).flatten(0, 1)  # (N, d/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)[None].float()                                    # (1, N, d)


class TimestepEmbedder(nn.Module):
    """Sines and cosines of the timestep at 128 frequencies (Ho et al. 2020), followed by an MLP."""

    num_channels = 256

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.freq_shift = config.timestep_freq_shift
        self.scale, self.offset = config.timestep_scale, config.timestep_offset
        self.mlp = nn.Sequential(
            NormalLinear(self.num_channels, config.hidden_size),
            nn.SiLU(),
            NormalLinear(config.hidden_size, config.hidden_size),
        )

    def forward(self, timestep: Tensor) -> Tensor:
        half, timestep = self.num_channels // 2, timestep.float()
        if (self.scale, self.offset) != (1, 0):
            timestep = self.offset + self.scale * timestep
        exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - self.freq_shift)
        angles = timestep[:, None] * torch.exp(-math.log(10000) * exponent)  # (B, 128)
        sines = torch.cat([angles.cos(), angles.sin()], dim=-1)              # (B, 256)
        return self.mlp(sines)                                               # (B, D)


class LabelEmbedder(nn.Module):
    """A table of classes, with one more row for the null class of classifier-free guidance (Ho & Salimans 2022)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding_table = nn.Embedding(config.num_classes + config.has_null_class, config.hidden_size)

    def forward(self, class_labels: Tensor | None, drop_labels: Tensor | None) -> Tensor:
        if class_labels is None:
            raise ValueError(f"class_labels=None for {self.config.num_classes} classes: pass a label per sample, (B,)")
        self._check(class_labels, drop_labels)
        if drop_labels is None and self.training and self.config.has_null_class:
            drop_labels = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout_prob
        if drop_labels is not None:
            class_labels = class_labels.masked_fill(drop_labels, self.config.null_class_id)  # (B,)
        return self.embedding_table(class_labels)                                            # (B, D)

    def _check(self, labels: Tensor, drop: Tensor | None) -> None:
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(f"class_labels {labels.dtype} {tuple(labels.shape)}: pass a whole number per sample, (B,)")
        if drop is not None and (drop.shape != labels.shape or drop.dtype != torch.bool):
            raise ValueError(f"drop_labels {drop.dtype} {tuple(drop.shape)}: pass bool of shape {tuple(labels.shape)}")
        # Reading the values would stall a GPU, and a compiler cannot branch on them.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            num_rows = self.config.num_classes + self.config.has_null_class  # an adapter may wrap the table
            if ((labels < 0) | (labels >= num_rows)).any():
                null = f", or {self.config.null_class_id} for no class" if self.config.has_null_class else ""
                raise ValueError(f"class_labels={labels.tolist()}: pass 0..{self.config.num_classes - 1}{null}")
