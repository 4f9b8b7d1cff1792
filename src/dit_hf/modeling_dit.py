"""The Diffusion Transformer: a vision transformer that predicts the noise in a latent (Peebles & Xie 2022).

Diffusion adds noise to a latent, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, and trains a network to
predict eps from x_t, the timestep t and the class y. Sampling starts from noise and removes the prediction step by
step. Earlier networks were U-Nets; this one is a plain transformer, whose quality follows its compute:

    x = patchify(x_t) + positions                    (B, N, D)      embeddings.py
    c = embed(t) + embed(y)                          (B, D)         embeddings.py
    x = block(x, c), for each of the blocks          (B, N, D)      blocks.py
    eps, v = unpatchify(final_layer(x, c))           2 (B, C, H, W) blocks.py, embeddings.py

v interpolates the logarithm of the variance between its two bounds (Nichol & Dhariwal 2021, eq. 15). Patches of half
the side are four times as many tokens: more compute, about the same number of parameters.

Shapes: B samples, C latent channels, H x W latent, p patch size, N = (H/p)(W/p) patches, D width,
h heads, K = 2 conditioning tokens [t, y] (1 without classes), S = N tokens in a block (N + K in-context).
The conditioning may have B = 1, shared by a whole batch. Weights carry the names of the authors' checkpoints.

Precision: with half-precision weights, or under autocast, the timestep's sines, the residual stream, the norms and
adaLN's arithmetic stay in float32; matrix products and attention run in the lower precision.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel  # noqa: F401  diffusers loads DiTModel if it finds this base in the module
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .blocks import BLOCKS, DiTBlock
from .configuration_dit import DiTConfig
from .embeddings import (
    DiTPositions,
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    position_embedding,
    rotations,
    unpatchify,
)
from .layers import FIRST_VALUE_SHARE, Attention, HeadNorm, NormalLinear, ZeroLinear
from .pretrained import DiTPreTrainedModel

# The formatter would undo the columns of shapes.
# fmt: off


class DiTConditioning(NamedTuple):
    """All of a forward that depends on the timestep and the label only; `DiTModel.condition` makes it.

    Args:
        embedding: Sum c = t + y (B, D) in the adaLN designs, tokens [t, y] (B, K, D) in the others.
        blocks: What each block derives from the embedding: the modulation (B, 6D or 4D) in the adaLN designs, the keys
            and values (B, K, 2D) in cross-attention, None in-context. If empty, every block derives its own.
        final: The modulation of the final layer (B, 2D). If None, the layer has no modulation or derives its own.
    """

    embedding: Tensor
    blocks: tuple[Tensor | None, ...] = ()
    final: Tensor | None = None


@dataclass
class DiTModelOutput(ModelOutput):
    """What `DiTModel` returns.

    Args:
        sample: The prediction (B, out_channels, H, W): eps, followed by the channels of a learned variance.
        hidden_states: The tokens (B, S, D) before the first block and after each block, with output_hidden_states=True.
        attentions: The weights (B, h, S, S) of each block's self-attention, with output_attentions=True.
    """

    sample: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DiTModel(DiTPreTrainedModel):
    """A Diffusion Transformer: from noisy latents, a timestep and a label to the noise and, if learned, its variance.

    Args:
        config: The architecture.

    Raises:
        ValueError: If the configuration has a value outside its limits.

    Source: Peebles & Xie 2022, arXiv 2212.09748.
    """

    main_input_name = "hidden_states"
    supports_gradient_checkpointing = True
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DiTBlock, "attentions": Attention}
    _input_embed_layer = "x_embedder"

    def __init__(self, config: DiTConfig) -> None:
        config.check()
        super().__init__(config)
        block = BLOCKS[config.block_type]
        rows, columns = config.grid_height_width
        self.x_embedder = PatchEmbed(config)
        self.pos_embed: nn.Parameter | None = None
        if config.position_embedding != "rope":
            self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, config.hidden_size), requires_grad=False)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config) if config.num_classes else None
        self.blocks = nn.ModuleList(block(config) for _ in range(config.num_hidden_layers))
        self.blocks[0].check_layers(config)  # type: ignore[operator]
        self.final_layer = block.final_layer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # xavier_uniform, for which the fused qkv is one matrix (3D, D) and the patch kernel one matrix (D, C*p*p).
        # The functions of `transformers.initialization` leave loaded weights alone; plain writes would not.
        if isinstance(module, DiTModel) and module.pos_embed is not None:
            init.copy_(module.pos_embed, position_embedding(self.config.grid_height_width, self.config.hidden_size))
        elif isinstance(module, nn.Conv2d):
            fan_out, fan_in = module.weight.flatten(1).shape
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, HeadNorm):
            init.ones_(module.weight)
        elif isinstance(module, Attention) and self.config.value_residual:
            init.constant_(module.v_mix, FIRST_VALUE_SHARE)
        elif isinstance(module, (NormalLinear, nn.Embedding)):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.zeros_(module.bias)

    def condition(
        self, timestep: Tensor | float, class_labels: Tensor | None = None, drop_labels: Tensor | None = None
    ) -> DiTConditioning:
        """Compute all that depends on the timestep and the label only, for `forward(..., conditioning=...)`.

        Args:
            timestep: As in `forward`. One timestep with one label makes a conditioning that fits any batch.
            class_labels: As in `forward`.
            drop_labels: As in `forward`.

        Raises:
            ValueError: As in `forward`.
        """
        embedding = self._embed(timestep, class_labels, drop_labels)
        blocks = tuple(block.condition(embedding) for block in self.blocks)  # type: ignore[operator]
        return DiTConditioning(embedding, blocks, self.final_layer.condition(embedding))

    def positions(
        self,
        height: int | None = None,
        width: int | None = None,
        policy: Literal["extend", "interpolate"] | None = None,
    ) -> DiTPositions:
        """Compute all that depends on the places of the patches only, for `forward(..., positions=...)`.

        Without arguments, the positions are those of the trained size; with another size and a policy, the embedding
        is that of `resize_pos_embed`, and a rotary embedding follows the same policy. What an attention has to know of
        positions belongs here too: every block hands `DiTPositions.attention` to its attention.

        Args:
            height: As in `resize_pos_embed`.
            width: As in `resize_pos_embed`.
            policy: As in `resize_pos_embed`.

        Raises:
            ValueError: As in `resize_pos_embed`, or if only some of the arguments are given.
        """
        own = grid = self.config.grid_height_width
        embedding: Tensor | None = self.pos_embed
        if not (height is None and width is None and policy is None):
            if height is None or width is None or policy is None:
                raise ValueError(f"positions({height}, {width}, {policy!r}): pass all three arguments, or none of them")
            grid = self._grid(height, width, policy)
            embedding = None if embedding is None else self.resize_pos_embed(height, width, policy)
        if self.config.position_embedding == "sincos":
            return DiTPositions(embedding)
        rows, columns = self.config.rope_scale_height_width
        if policy == "interpolate":
            rows, columns = rows * own[0] / grid[0], columns * own[1] / grid[1]
        return DiTPositions(embedding, rotations(self.config, grid, (rows, columns), self._place))

    def resize_pos_embed(self, height: int, width: int, policy: Literal["extend", "interpolate"]) -> Tensor:
        """Make a position embedding (1, N, D) for latents of another size.

        Example: a model is trained at 4 x 4 patches, and the latents have 8 x 8. "extend" counts rows and columns from
        0 to 7, so that the patches 0 to 3 keep their embedding; "interpolate" places eight patches between -0.25 and
        3.25, so that the corners of the image stay corners.

        Args:
            height: Height of the latents, in latent pixels.
            width: Width of the latents, in latent pixels.
            policy: How to place the patches. "extend" keeps the size of a patch and continues the trained grid;
                "interpolate" stretches the trained grid over the image.

        Raises:
            ValueError: If the policy is unknown, the size is not a multiple of the patch size, or the model adds no
                position embedding to its tokens.
        """
        grid, trained = self._grid(height, width, policy), self.config.grid_height_width
        if self.pos_embed is None:
            raise ValueError("position_embedding='rope' adds none to the tokens: call positions(height, width, policy)")
        if policy == "interpolate":
            return position_embedding(grid, self.config.hidden_size, trained).to(self.pos_embed.device)
        table = position_embedding(grid, self.config.hidden_size).unflatten(1, grid).to(self.pos_embed.device)
        rows, columns = min(grid[0], trained[0]), min(grid[1], trained[1])
        # the stored embedding may have drifted from the formula in training
        table[:, :rows, :columns] = self.pos_embed.unflatten(1, trained)[:, :rows, :columns].float()
        return table.flatten(1, 2)

    def _grid(self, height: int, width: int, policy: str) -> tuple[int, int]:
        """The rows and columns of patches of latents of another size."""
        if policy not in ("extend", "interpolate"):
            raise ValueError(f"policy={policy!r}: choose from extend, interpolate")
        p = self.config.patch_size
        if height < p or width < p or height % p or width % p:
            raise ValueError(f"latents of {height} x {width}: pass multiples of patch_size={p}")
        return height // p, width // p

    @property
    def _place(self) -> torch.device:
        """The device that the model computes on."""
        return self.device if self.pos_embed is None else self.pos_embed.device

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile each block in place. Blocks share one graph, so that compiling takes a fraction of the model's time.

        Args:
            *args: As in `torch.compile`.
            **kwargs: As in `torch.compile`.
        """
        for block in self.blocks:
            block.compile(*args, **kwargs)

    @capture_outputs  # answers output_hidden_states, output_attentions and return_dict
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        *,
        drop_labels: Tensor | None = None,
        conditioning: DiTConditioning | None = None,
        positions: DiTPositions | None = None,
        pos_embed: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> DiTModelOutput | tuple[Any, ...]:
        """Predict the noise and, if it is learned, its variance.

        Args:
            hidden_states: Noisy latents x_t (B, C, H, W).
            timestep: Number t in 0..999 of the training schedule, fractions allowed, or a tensor () or (B,) of them.
            class_labels: Labels (B,) in 0..num_classes - 1, or `config.null_class_id`. None if unconditional.
            drop_labels: Mask (B,), bool, of the labels that become the null class, in any mode. If None, the mask is
                drawn with probability `config.class_dropout_prob` in training mode, and empty in evaluation mode.
            conditioning: Result of `condition`, in place of timestep, class_labels and drop_labels.
            positions: Result of `positions`, needed if the latents are not of the configuration's size.
            pos_embed: Result of `resize_pos_embed`, in place of positions that hold nothing else.
            output_hidden_states: Whether to return the tokens around each block.
            output_attentions: Whether to return the attention weights, which only "eager" attention has.
            return_dict: Whether to return a `DiTModelOutput`; a tuple if False.

        Raises:
            ValueError: If the latents don't fit the configuration, or timestep and labels don't fit the latents.
        """
        if pos_embed is not None:
            if positions is not None:
                raise ValueError("positions already hold the position embedding: pass them without pos_embed")
            positions = DiTPositions(pos_embed)
        self._check(hidden_states, positions, output_attentions)
        if conditioning is None:
            conditioning = DiTConditioning(self._embed(timestep, class_labels, drop_labels))
        elif not (timestep is None and class_labels is None and drop_labels is None):
            raise ValueError("conditioning already holds timestep and labels: pass it without them")
        embedding, derived, derived_final = conditioning                         # (B, D) or (B, K, D)
        batch, conditioned = hidden_states.shape[0], embedding.shape[0]  # len() would fix both numbers in an export
        if conditioned not in (1, batch):
            raise ValueError(f"timesteps or labels for {conditioned} don't fit {batch} latents")

        positions = self.positions() if positions is None else positions
        x = self.x_embedder(hidden_states).float()                               # (B, N, D)
        if positions.embedding is not None:
            x = x + positions.embedding.float()
        num_patches = x.shape[1]
        if BLOCKS[self.config.block_type].extends_sequence:
            x = torch.cat([x, embedding.float().expand(batch, -1, -1)], dim=1)   # (B, N + K, D)
        first_values = None                                                      # (B, S, D) with value_residual
        for block, block_derived in zip(self.blocks, derived or [None] * len(self.blocks), strict=True):
            x = block(x, embedding, block_derived, positions.attention, first_values)  # (B, S, D)
            if self.config.value_residual:
                x, first_values = x
        x = self.final_layer(x[:, :num_patches], embedding, derived_final)       # (B, N, p*p*C)
        height, width = hidden_states.shape[-2:]
        grid = height // self.config.patch_size, width // self.config.patch_size
        return DiTModelOutput(sample=unpatchify(x, self.config, grid))           # (B, C, H, W)

    def _embed(
        self, timestep: Tensor | float | None, class_labels: Tensor | None, drop_labels: Tensor | None
    ) -> Tensor:
        if timestep is None:
            raise ValueError("timestep=None: pass t in 0..999, or conditioning=model.condition(timestep, class_labels)")
        if isinstance(timestep, (int, float)):  # for which torch.as_tensor would be compiled anew at each number
            timestep = torch.full((), timestep, dtype=torch.float32, device=self._place)
        dtype = None if isinstance(timestep, Tensor) else torch.float32  # whatever torch's default is
        timestep = torch.as_tensor(timestep, dtype=dtype, device=self._place)
        if timestep.ndim > 1:
            raise ValueError(f"timestep of shape {tuple(timestep.shape)}: pass a number, or one per sample, (B,)")
        embeddings = [self.t_embedder(timestep.reshape(-1))]               # (B, D)
        if self.y_embedder is not None:
            embeddings.append(self.y_embedder(class_labels, drop_labels))  # (B, D)
        elif class_labels is not None or drop_labels is not None:
            raise ValueError("num_classes=0 makes the model unconditional: pass no class_labels, no drop_labels")
        lengths = embeddings[0].shape[0], embeddings[-1].shape[0]
        if lengths[0] != lengths[1] and 1 not in lengths:
            raise ValueError(f"{lengths[0]} timesteps for {lengths[1]} labels: pass one for each")
        tokens = torch.stack(torch.broadcast_tensors(*embeddings), dim=1)  # (B, K, D)
        return tokens.sum(dim=1) if BLOCKS[self.config.block_type].sums_embeddings else tokens

    def _check(self, latents: Tensor, positions: DiTPositions | None, output_attentions: bool | None) -> None:
        config = self.config
        expected = (config.in_channels, *(config.sample_height_width if positions is None else latents.shape[2:]))
        if latents.ndim != 4 or latents.shape[1:] != expected:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: in_channels={config.in_channels} and "
                f"sample_size={config.sample_size} take (B, {', '.join(map(str, expected))}), or another size with "
                "positions=model.positions(height, width, policy)"
            )
        height, width = latents.shape[2:]
        p = config.patch_size
        num_patches = None if positions is None else positions.num_patches
        if num_patches is not None and (height % p or width % p or num_patches != height * width // p**2):
            raise ValueError(f"positions of {num_patches} patches do not fit latents of {height} x {width}")
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError(
                f"{config._attn_implementation!r} attention has no weights to return: call "
                'model.set_attn_implementation("eager") for output_attentions=True'
            )
