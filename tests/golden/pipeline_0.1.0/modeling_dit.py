"""The Diffusion Transformer: patchify, embedders, the four block designs, `DiTModel` (Peebles & Xie 2022, section 3.2).

Shapes: B samples, C latent channels, H x W latent, p patch size, N = (H/p)(W/p) patches, D width, M the MLP's width,
h heads of d = D/h, K = 2 conditioning tokens [t, y] (1 without classes), S = N tokens in a block (N + K in-context).
The conditioning may have B = 1 where a batch shares it. Weights carry the names of the authors' checkpoints.

Precision: with half-precision weights, or under autocast, the timestep's sines, the residual stream, the norms and
adaLN's arithmetic stay in float32; matrix products and attention run in the lower precision.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_dit import DiTConfig

# The formatter would undo the columns of shapes.
# fmt: off


class DiTConditioning(NamedTuple):
    """All of a forward that depends on the timestep and the label only; `DiTModel.condition` makes it.

    Args:
        embedding: c = t + y (B, D) in the adaLN designs, the tokens [t, y] (B, K, D) in the others.
        blocks: What each block derives from it: the modulation (B, 6D or 4D) in the adaLN designs, the keys and values
            (B, K, 2D) in cross-attention, None in-context. Empty: every block derives its own during the forward.
        final: The modulation of the final layer (B, 2D); None: it has none, or derives its own.
    """

    embedding: Tensor
    blocks: tuple[Tensor | None, ...] = ()
    final: Tensor | None = None


@dataclass
class DiTModelOutput(ModelOutput):
    """What `DiTModel` returns.

    Args:
        sample: The prediction (B, out_channels, H, W): eps, followed by the variance's channels where it is learned.
        hidden_states: The tokens before the first block and after each (B, S, D), when asked for.
        attentions: The weights of each block's self-attention (B, h, S, S), when asked for.
    """

    sample: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ZeroLinear(nn.Linear):
    """A Linear that starts at zero: initialisation goes by the class of the leaf."""


class NormalLinear(nn.Linear):
    """A Linear that starts at N(0, 0.02)."""


class Norm(nn.LayerNorm):
    """LayerNorm of the float32 residual stream, adaLN's modulation where it is given, and the cast to `dtype`."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps=eps, elementwise_affine=False)

    def forward(
        self, x: Tensor, dtype: torch.dtype, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        x = super().forward(x)                      # (B, S, D)
        if shift is not None and scale is not None:
            x = torch.addcmul(shift, x, 1 + scale)  # (B, S, D), in one pass over memory also where it is not compiled
        return x.to(dtype)


class Mlp(nn.Module):
    """The pointwise feed-forward of a block."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.fc2 = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x), approximate="tanh")  # (B, S, M)
        return self.fc2(x)                           # (B, S, D)


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention written out: the one implementation that returns its weights."""
    scores = query @ key.transpose(-2, -1) * scaling                       # (B, h, S, S)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)  # (B, h, S, S)
    return (weights @ value).transpose(1, 2), weights                      # (B, S, h, d)


def attend(config: DiTConfig, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Any]:
    """Attend from heads (B, h, S, d) to tokens (B, S, D), by the implementation that the model was loaded with."""
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    scaling = query.shape[-1] ** -0.5
    x, weights = implementation(module, query, key, value, None, scaling=scaling, dropout=0.0)  # (B, S, h, d)
    return x.flatten(2), weights                                                                # (B, S, D)


class Attention(nn.Module):
    """Self-attention over the tokens of a block."""

    is_causal = False  # transformers' implementations are causal unless told

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        qkv = self.qkv(x).unflatten(-1, (3, self.config.num_attention_heads, -1))  # (B, S, 3, h, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)                             # (B, h, S, d)
        x, weights = attend(self.config, self, query, key, value)                  # (B, S, D)
        return self.proj(x), weights


class CrossAttention(nn.Module):
    """Attention of a block's tokens over the conditioning tokens [t, y]."""

    is_causal = False

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, kv: Tensor) -> Tensor:
        heads = self.config.num_attention_heads
        query = self.q(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, h, S, d)
        kv = kv.expand(len(x), -1, -1).unflatten(-1, (2, heads, -1))  # (B, K, 2, h, d)
        key, value = kv.permute(2, 0, 3, 1, 4)                        # (B, h, K, d)
        x, _ = attend(self.config, self, query, key, value)           # (B, S, D)
        return self.proj(x)


class PatchEmbed(nn.Module):
    """Patchify: the p x p patches of a latent, row by row, each projected to a token."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.proj(latents.to(self.proj.weight.dtype))  # (B, D, H/p, W/p)
        # a view would give the whole residual stream its strides, and every norm would copy it
        return x.flatten(2).transpose(1, 2).contiguous()   # (B, N, D)


def unpatchify(tokens: Tensor, config: DiTConfig, grid_height_width: tuple[int, int] | None = None) -> Tensor:
    """Lay predicted patches (B, N, p*p*C) into a latent (B, C, H, W); the channel is the fastest index of a patch."""
    p = config.patch_size
    rows, columns = grid_height_width or config.grid_height_width
    x = tokens.reshape(-1, rows, columns, p, p, config.out_channels)  # (B, H/p, W/p, p, p, C)
    x = x.permute(0, 5, 1, 3, 2, 4)                                   # (B, C, H/p, p, W/p, p)
    return x.reshape(-1, config.out_channels, rows * p, columns * p)  # (B, C, H, W)


def position_embedding(
    grid_height_width: tuple[int, int], hidden_size: int, trained_height_width: tuple[int, int] | None = None
) -> Tensor:
    """The fixed sine-cosine embedding (1, N, D): the column in the first half of the channels, the row in the second.

    Args:
        grid_height_width: Rows and columns of patches.
        hidden_size: D.
        trained_height_width: Rows and columns to stretch the grid over, each patch at its centre; the grid itself if
            not given.

    Source: Vaswani et al. 2017, in two dimensions as in He et al. 2021 (MAE).
    """
    quarter = hidden_size // 4
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)                    # (D/4,)
    axes = []
    for length, trained in zip(grid_height_width, trained_height_width or grid_height_width, strict=True):
        centre = torch.arange(length, dtype=torch.float64) + 0.5
        axes.append(centre * (trained / length) - 0.5)
    row, column = torch.meshgrid(*axes, indexing="ij")                                          # (H/p, W/p)
    angles = torch.stack([column, row], dim=-1).reshape(-1, 2, 1) * omega                       # (N, 2, D/4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(1, -1, hidden_size).float()  # (1, N, D)


class TimestepEmbedder(nn.Module):
    """Sines of the timestep (Ho et al. 2020), then an MLP."""

    num_channels = 256

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.freq_shift = config.timestep_freq_shift
        self.mlp = nn.Sequential(
            NormalLinear(self.num_channels, config.hidden_size),
            nn.SiLU(),
            NormalLinear(config.hidden_size, config.hidden_size),
        )

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - self.freq_shift)
        angles = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponent)  # (B, 128)
        sines = torch.cat([angles.cos(), angles.sin()], dim=-1)                      # (B, 256)
        return self.mlp(sines.to(next(self.mlp.parameters()).dtype))                 # (B, D)


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
            raise ValueError(f"drop_labels {drop.dtype} {tuple(drop.shape)}: pass a bool per label, ({len(labels)},)")
        # Reading the values would stall a GPU, and a compiler cannot branch on them.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            if ((labels < 0) | (labels >= self.embedding_table.num_embeddings)).any():
                null = f", or {self.config.null_class_id} for no class" if self.config.has_null_class else ""
                raise ValueError(f"class_labels={labels.tolist()}: pass 0..{self.config.num_classes - 1}{null}")


class FinalLayer(nn.Module):
    """LayerNorm, and a Linear from each token to its patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = Norm(config.hidden_size)
        self.linear = ZeroLinear(config.hidden_size, config.patch_size**2 * config.out_channels)

    def condition(self, embedding: Tensor) -> Tensor | None:
        return None

    def forward(self, x: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        return self.linear(self.norm_final(x, embedding.dtype))  # (B, N, p*p*C)


class AdaLNFinalLayer(FinalLayer):
    """The final layer with adaptive LayerNorm."""

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
    """What the four designs share; each says how the conditioning enters.

    A block takes the residual stream `hidden_states`, in float32, the conditioning's `embedding`, whose dtype is that
    of the matrix products, and what it `derived` from the embedding beforehand, if that was done.
    """

    final_layer: type[FinalLayer] = FinalLayer
    sums_embeddings = False  # the conditioning is c = t + y, else the tokens [t, y]
    extends_sequence = False  # these tokens join the sequence

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.hidden_size)
        self.attn = Attention(config)
        self.norm2 = Norm(config.hidden_size, eps=config.mlp_norm_eps)
        self.mlp = Mlp(config)

    def condition(self, embedding: Tensor) -> Tensor | None:
        """What this block derives from the conditioning, whatever the latents."""
        return None


class InContextBlock(DiTBlock):
    """A plain ViT block: the tokens [t, y] stand in the sequence, after the patches."""

    extends_sequence = True

    def forward(self, hidden_states: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        x, dtype = hidden_states, embedding.dtype  # (B, S, D)
        x = x + self.attn(self.norm1(x, dtype))[0]
        return x + self.mlp(self.norm2(x, dtype))


class CrossAttentionBlock(DiTBlock):
    """A cross-attention over the tokens [t, y] stands between self-attention and MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.norm_cross = Norm(config.hidden_size)
        self.cross_attn = CrossAttention(config)

    def condition(self, embedding: Tensor) -> Tensor:
        return self.cross_attn.kv(embedding)  # (B, K, 2D)

    def forward(self, hidden_states: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        kv = self.condition(embedding) if derived is None else derived  # (B, K, 2D)
        x, dtype = hidden_states, embedding.dtype                       # (B, S, D)
        x = x + self.attn(self.norm1(x, dtype))[0]
        x = x + self.cross_attn(self.norm_cross(x, dtype), kv)
        return x + self.mlp(self.norm2(x, dtype))


class AdaLNBlock(DiTBlock):
    """adaLN: the shift and scale of both norms are regressed from c (Perez et al. 2018)."""

    final_layer = AdaLNFinalLayer
    sums_embeddings = True
    num_chunks = 4

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        width = self.num_chunks * config.hidden_size
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ZeroLinear(config.hidden_size, width))

    def condition(self, embedding: Tensor) -> Tensor:
        return self.adaLN_modulation(embedding)  # (B, 4D)

    def forward(self, hidden_states: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        modulation = self.condition(embedding) if derived is None else derived                     # (B, 4D)
        shift_msa, scale_msa, shift_mlp, scale_mlp = modulation.float()[:, None].chunk(4, dim=-1)  # (B, 1, D)
        x, dtype = hidden_states, embedding.dtype                                                  # (B, S, D)
        x = x + self.attn(self.norm1(x, dtype, shift_msa, scale_msa))[0]
        return x + self.mlp(self.norm2(x, dtype, shift_mlp, scale_mlp))


class AdaLNZeroBlock(AdaLNBlock):
    """adaLN-Zero: adaLN with gates that start at zero, so that a fresh block is the identity (Goyal et al. 2017)."""

    num_chunks = 6

    def forward(self, hidden_states: Tensor, embedding: Tensor, derived: Tensor | None = None) -> Tensor:
        modulation = self.condition(embedding) if derived is None else derived   # (B, 6D)
        chunks = modulation.float()[:, None].chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = chunks  # (B, 1, D)
        x, dtype = hidden_states, embedding.dtype                                # (B, S, D)
        x = torch.addcmul(x, gate_msa, self.attn(self.norm1(x, dtype, shift_msa, scale_msa))[0])
        return torch.addcmul(x, gate_mlp, self.mlp(self.norm2(x, dtype, shift_mlp, scale_mlp)))


BLOCKS: dict[str, type[DiTBlock]] = {         # parameters and multiply-adds of XL/2 at 256 px (the paper's table 4)
    "in_context": InContextBlock,             # 449,326,112  119.354 G
    "cross_attention": CrossAttentionBlock,   # 598,090,784  137.603 G
    "adaln": AdaLNBlock,                      # 600,747,296  118.547 G
    "adaln_zero": AdaLNZeroBlock,             # 675,129,632  118.621 G
}


class DiTModel(PreTrainedModel):
    """A Diffusion Transformer: from noisy latents, a timestep and a label to the noise, and its variance where learned.

    Args:
        config: The architecture.

    Raises:
        ValueError: If the configuration has a value outside its limits.

    Source: Peebles & Xie 2022, arXiv 2212.09748.
    """

    config: DiTConfig
    config_class = DiTConfig
    base_model_prefix = "dit"
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
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, config.hidden_size), requires_grad=False)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config) if config.num_classes else None
        self.blocks = nn.ModuleList(block(config) for _ in range(config.num_hidden_layers))
        self.final_layer = block.final_layer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # xavier_uniform, for which the fused qkv is one matrix (3D, D) and the patch kernel one matrix (D, C*p*p).
        # The functions of `transformers.initialization` leave loaded weights alone; plain writes would not.
        if isinstance(module, DiTModel):
            init.copy_(module.pos_embed, position_embedding(self.config.grid_height_width, self.config.hidden_size))
        elif isinstance(module, nn.Conv2d):
            fan_out, fan_in = module.weight.flatten(1).shape
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, (NormalLinear, nn.Embedding)):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, source: Any = None, *args: Any, strict: bool = True, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a model as `transformers.PreTrainedModel.from_pretrained` does, but never silently a wrong one.

        Args:
            source: A folder, or an id on the Hub.
            *args: As in transformers.
            strict: Refuse weights that are missing, left over, of another shape or not finite; with False, what is
                missing is initialised at random, with transformers' warning.
            output_loading_info: Whether to return what was missing or left over beside the model.
            **kwargs: As in transformers.

        Raises:
            ValueError: If the weights do not make the model whole or are whole numbers, naming file and key.
        """
        folder = Path(source or ".", kwargs.get("subfolder") or "")
        if folder.is_dir() and source and "config" not in kwargs and not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json, and the default one would be a guess: pass config=...")
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["ignore_mismatched_sizes"] = may_differ or strict  # transformers would not name them
        model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        files = model.__dict__.pop("_read_from", ())
        model.pos_embed.requires_grad_(False)  # transformers loads every weight as a trainable one
        if strict:
            finite = {key: bool(weight.is_meta or weight.isfinite().all()) for key, weight in model.named_parameters()}
            faults = {
                "of another shape": [] if may_differ else [key for key, *_ in info["mismatched_keys"]],
                "missing": info["missing_keys"],
                "left over": info["unexpected_keys"],
                "not finite": [key for key, is_finite in finite.items() if not is_finite],
            }
            for fault, keys in faults.items():
                if keys:
                    first = ", ".join(sorted(map(str, keys))[:3])
                    raise ValueError(
                        f"{', '.join(files)} of {source}: {len(keys)} weights are {fault}: {first}"
                        f"{' ...' if len(keys) > 3 else ''}. Fetch or convert the model again, or load what there is "
                        "with strict=False"
                    )
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(
        model: "DiTModel", state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Refuse files that are damaged or hold whole numbers, which transformers would cast without a word."""
        for file in checkpoint_files or ():
            try:
                weights = load_state_dict(file, map_location="meta")  # types and shapes only
            except SafetensorError as error:
                raise ValueError(f"{file} is cut short or no safetensors file: {error}") from error
            whole = sorted(key for key, weight in weights.items() if not weight.is_floating_point())
            if whole and getattr(model.config, "quantization_config", None) is None:
                raise ValueError(f"{file}: {whole[0]} is {weights[whole[0]].dtype}, weights are floating point numbers")
        model._read_from = [Path(file).name for file in checkpoint_files or ()]
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> Any:
        """Push the model alone as transformers does, into a private repository unless told otherwise."""
        return super().push_to_hub(repo_id, private=private, **kwargs)

    def condition(
        self, timestep: Tensor | float, class_labels: Tensor | None = None, drop_labels: Tensor | None = None
    ) -> DiTConditioning:
        """Compute all that depends on the timestep and the label only, for `forward(..., conditioning=...)`.

        Args:
            timestep: As in `forward`; a single one, with a single label, makes a conditioning that fits any batch.
            class_labels: As in `forward`.
            drop_labels: As in `forward`.

        Raises:
            ValueError: As in `forward`.
        """
        embedding = self._embed(timestep, class_labels, drop_labels)
        blocks = tuple(block.condition(embedding) for block in self.blocks)  # type: ignore[operator]
        return DiTConditioning(embedding, blocks, self.final_layer.condition(embedding))

    def resize_pos_embed(self, height: int, width: int, policy: Literal["extend", "interpolate"]) -> Tensor:
        """Make a position embedding for latents of another size, for `forward(..., pos_embed=...)`.

        Args:
            height: Of the latents, in latent pixels.
            width: Likewise.
            policy: "extend" counts on beyond the trained rows and columns, so that a patch keeps its size and place;
                "interpolate" stretches the trained ones over the image, so that the whole keeps its layout.

        Raises:
            ValueError: If the policy is unknown or the size no multiple of the patch size.
        """
        if policy not in ("extend", "interpolate"):
            raise ValueError(f"policy={policy!r}: choose from extend, interpolate")
        p, trained = self.config.patch_size, self.config.grid_height_width
        if height < p or width < p or height % p or width % p:
            raise ValueError(f"latents of {height} x {width}: pass multiples of patch_size={p}")
        grid = (height // p, width // p)
        if policy == "interpolate":
            return position_embedding(grid, self.config.hidden_size, trained).to(self.pos_embed.device)
        table = position_embedding(grid, self.config.hidden_size).unflatten(1, grid).to(self.pos_embed.device)
        rows, columns = min(grid[0], trained[0]), min(grid[1], trained[1])
        # what is stored may have drifted in training
        table[:, :rows, :columns] = self.pos_embed.unflatten(1, trained)[:, :rows, :columns].float()
        return table.flatten(1, 2)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile each block in place; they share one graph, so that it takes a fraction of the whole model's time.

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
        pos_embed: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> DiTModelOutput | tuple[Any, ...]:
        """Predict the noise, and its variance where learned.

        Args:
            hidden_states: Noisy latents x_t (B, C, H, W).
            timestep: t in 0..999 of the training schedule, fractions allowed: a number, or a tensor () or (B,).
            class_labels: Labels (B,) in 0..num_classes - 1, or `config.null_class_id`; None if unconditional.
            drop_labels: Which labels become the null class, bool (B,), in any mode. None: drawn with
                `config.class_dropout_prob` in training mode, none in evaluation mode.
            conditioning: The result of `condition`, instead of the three above.
            pos_embed: The result of `resize_pos_embed`, for latents of another size than the configuration's.
            output_hidden_states: Whether to return the tokens around each block.
            output_attentions: Whether to return the attention weights, which only "eager" attention has.
            return_dict: False for a tuple.

        Raises:
            ValueError: If the latents don't fit the configuration, or timestep and labels don't fit the latents.
        """
        self._check(hidden_states, pos_embed, output_attentions)
        if conditioning is None:
            conditioning = DiTConditioning(self._embed(timestep, class_labels, drop_labels))
        elif not (timestep is None and class_labels is None and drop_labels is None):
            raise ValueError("conditioning already holds timestep and labels: pass it without them")
        embedding, derived, derived_final = conditioning                         # (B, D) or (B, K, D)
        if len(embedding) not in (1, len(hidden_states)):
            raise ValueError(f"timesteps or labels for {len(embedding)} don't fit {len(hidden_states)} latents")

        positions = self.pos_embed if pos_embed is None else pos_embed           # (1, N, D)
        x = self.x_embedder(hidden_states).float() + positions.float()           # (B, N, D)
        num_patches = x.shape[1]
        if BLOCKS[self.config.block_type].extends_sequence:
            x = torch.cat([x, embedding.float().expand(len(x), -1, -1)], dim=1)  # (B, N + K, D)
        for block, block_derived in zip(self.blocks, derived or [None] * len(self.blocks), strict=True):
            x = block(x, embedding, block_derived)                               # (B, S, D)
        x = self.final_layer(x[:, :num_patches], embedding, derived_final)       # (B, N, p*p*C)
        height, width = hidden_states.shape[-2:]
        grid = height // self.config.patch_size, width // self.config.patch_size
        return DiTModelOutput(sample=unpatchify(x, self.config, grid))           # (B, C, H, W)

    def _embed(
        self, timestep: Tensor | float | None, class_labels: Tensor | None, drop_labels: Tensor | None
    ) -> Tensor:
        if timestep is None:
            raise ValueError("timestep=None: pass t in 0..999, or conditioning=model.condition(timestep, class_labels)")
        timestep = torch.as_tensor(timestep, device=self.pos_embed.device)
        if timestep.ndim > 1:
            raise ValueError(f"timestep of shape {tuple(timestep.shape)}: pass a number, or one per sample, (B,)")
        embeddings = [self.t_embedder(timestep.reshape(-1))]               # (B, D)
        if self.y_embedder is not None:
            embeddings.append(self.y_embedder(class_labels, drop_labels))  # (B, D)
        elif class_labels is not None or drop_labels is not None:
            raise ValueError("num_classes=0 makes the model unconditional: pass no class_labels, no drop_labels")
        if len({len(embedding) for embedding in embeddings} - {1}) > 1:
            raise ValueError(f"{len(embeddings[0])} timesteps for {len(embeddings[1])} labels: pass one for each")
        tokens = torch.stack(torch.broadcast_tensors(*embeddings), dim=1)  # (B, K, D)
        return tokens.sum(dim=1) if BLOCKS[self.config.block_type].sums_embeddings else tokens

    def _check(self, latents: Tensor, pos_embed: Tensor | None, output_attentions: bool | None) -> None:
        config = self.config
        expected = (config.in_channels, *(config.sample_height_width if pos_embed is None else latents.shape[2:]))
        if latents.ndim != 4 or latents.shape[1:] != expected:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: in_channels={config.in_channels} and "
                f"sample_size={config.sample_size} take (B, {', '.join(map(str, expected))}), or another size with "
                "pos_embed=model.resize_pos_embed(height, width, policy)"
            )
        height, width = latents.shape[2:]
        p = config.patch_size
        if pos_embed is not None and (height % p or width % p or pos_embed.shape[1] != height * width // p**2):
            raise ValueError(f"pos_embed for {pos_embed.shape[1]} patches does not fit latents of {height} x {width}")
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError(
                f"{config._attn_implementation!r} attention has no weights to return: call "
                'model.set_attn_implementation("eager") for output_attentions=True'
            )
