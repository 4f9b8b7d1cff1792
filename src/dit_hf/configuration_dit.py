"""The architecture of a DiT, and the paper's twelve sizes (Peebles & Xie 2022, arXiv 2212.09748, table 1)."""

import inspect
import json
import math
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args

from transformers import PreTrainedConfig
from transformers.utils import logging

config_logger = logging.get_logger(__name__)

BlockType = Literal["in_context", "cross_attention", "adaln", "adaln_zero"]
PositionEmbedding = Literal["sincos", "rope", "both"]
FeedForward = Literal["gelu", "swiglu"]
NormType = Literal["layer", "rms"]


SIZES = ("S", "B", "L", "XL")  # the paper's names of depth and width, smallest first
PATCHES = (8, 4, 2)  # the paper's patch sizes, coarsest first


class PaperSize(NamedTuple):
    """A row of the paper's table: four fields of `DiTConfig`, and two numbers that the model must reproduce."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    patch_size: int
    num_parameters: int  # adaLN-Zero, 1000 classes, position embedding included
    gmacs: float  # one forward at 256 px (32 x 32 x 4 latents); the paper prints multiply-adds as "Gflops"


PAPER_SIZES: dict[str, PaperSize] = {
    "DiT-S/8": PaperSize(12, 384, 6, 8, 33_148_160, 0.36),
    "DiT-S/4": PaperSize(12, 384, 6, 4, 32_945_024, 1.41),
    "DiT-S/2": PaperSize(12, 384, 6, 2, 32_963_360, 6.06),
    "DiT-B/8": PaperSize(12, 768, 12, 8, 130_881_536, 1.42),
    "DiT-B/4": PaperSize(12, 768, 12, 4, 130_475_648, 5.56),
    "DiT-B/2": PaperSize(12, 768, 12, 2, 130_512_416, 23.01),
    "DiT-L/8": PaperSize(24, 1024, 16, 8, 458_594_816, 5.01),
    "DiT-L/4": PaperSize(24, 1024, 16, 4, 458_053_760, 19.70),
    "DiT-L/2": PaperSize(24, 1024, 16, 2, 458_102_816, 80.71),
    "DiT-XL/8": PaperSize(28, 1152, 16, 8, 675_683_072, 7.39),
    "DiT-XL/4": PaperSize(28, 1152, 16, 4, 675_074_432, 29.05),
    "DiT-XL/2": PaperSize(28, 1152, 16, 2, 675_129_632, 118.64),
}

# Fields that transformers passes to a configuration or stores in its file without declaring them in `PreTrainedConfig`.
TRANSFORMERS_FIELDS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}

MAX_LABELS = 2**20  # transformers makes a name for each label

# Attention implementations that a file may name. Any other name is a repository whose code transformers would run.
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


class DiTConfig(PreTrainedConfig):
    """The architecture of a Diffusion Transformer; the defaults are DiT-XL/2 at 256 px of ImageNet.

    Args:
        hidden_size: Width D of a token, a multiple of 4 and of `num_attention_heads`.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of heads of each attention.
        patch_size: Side p of a patch in latent pixels. It divides both sides of `sample_size`.
        sample_size: Side of a square latent, or the pair (height, width).
        in_channels: Number of channels C of a latent.
        num_classes: Number of classes; 0 for an unconditional model.
        learn_sigma: Whether the model also predicts the variance, which doubles its output channels.
        class_dropout_prob: Share of labels that training replaces by the null class, in [0, 1]. With 0 there is no null
            class, and so no classifier-free guidance.
        mlp_ratio: Ratio of the feed-forward's width to `hidden_size`.
        block_type: Block design, by which the conditioning enters: "in_context", "cross_attention", "adaln" or
            "adaln_zero".
        timestep_freq_shift: Shift in the timestep's frequencies, 10000^(-i / (128 - shift)): 0 in the original, 1 in
            diffusers.
        timestep_scale: Factor s of the timestep t, of which the embedding sees s t + o. SiT sees 1 - t / 1000, the
            share of data in flow matching: s = -0.001 and o = 1.
        timestep_offset: The number o that is added to s t.
        mlp_norm_eps: Epsilon of the norm before each feed-forward: 1e-6 in the original, 1e-5 in diffusers.
        qk_norm: Whether each attention normalises queries and keys, head by head, by an RMS norm with a learned weight
            (Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442).
        position_embedding: Way in which positions enter: "sincos" adds the paper's sines and cosines to the tokens,
            "rope" turns queries and keys of each self-attention by angles that grow with row and column (Su et al.
            2021, arXiv 2104.09864, in two dimensions), "both" does both.
        rope_theta: Base of the angles of "rope" and "both": frequencies fall from 1 to nearly 1 / rope_theta. 100 suits
            grids of 14 x 14 and the like (Heo et al. 2024, arXiv 2403.13298); 10,000 is that of long texts.
        rope_scale: Distance of neighbouring patches in the angles of "rope" and "both", or a pair (rows, columns);
            below 1 in a model that was fine-tuned at a larger resolution with interpolated positions.
        mlp: Feed-forward: "gelu" for the paper's, "swiglu" for a gated one (Shazeer 2020, arXiv 2002.05202) of as many
            parameters: its width is 2/3 of hidden_size * mlp_ratio, rounded to a multiple of 8.
        norm: Norm of tokens: "layer" for the paper's LayerNorm, "rms" for one that does not subtract the mean (Zhang &
            Sennrich 2019, arXiv 1910.07467). Neither has weights of its own.
        value_residual: Whether the values v of each self-attention become l v_1 + (1 - l) v, with the values v_1 of the
            first block and one learned number l a block, which starts at 0.5 (Zhou et al. 2024, arXiv 2410.17897).
        **kwargs: Fields of `transformers.PreTrainedConfig`.

    Raises:
        ValueError: If a value is outside its limits, or a name is unknown. `from_dict` keeps unknown names.

    Source: Peebles & Xie 2022, section 3.2.
    """

    model_type = "dit"

    def __init__(
        self,
        hidden_size: int = 1152,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 16,
        patch_size: int = 2,
        sample_size: int | tuple[int, int] | list[int] = 32,
        in_channels: int = 4,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        class_dropout_prob: float = 0.1,
        mlp_ratio: float = 4.0,
        block_type: BlockType = "adaln_zero",
        timestep_freq_shift: float = 0.0,
        mlp_norm_eps: float = 1e-6,
        qk_norm: bool = False,
        position_embedding: PositionEmbedding = "sincos",
        rope_theta: float = 100.0,
        rope_scale: float | tuple[float, float] | list[float] = 1.0,
        mlp: FeedForward = "gelu",
        norm: NormType = "layer",
        value_residual: bool = False,
        timestep_scale: float = 1.0,
        timestep_offset: float = 0.0,
        **kwargs: Any,
    ) -> None:
        unknown = next((name for name in kwargs if not _is_field(name)), None)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.patch_size = patch_size
        self.sample_size = sample_size
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.learn_sigma = learn_sigma
        self.class_dropout_prob = class_dropout_prob
        self.mlp_ratio = mlp_ratio
        self.block_type = block_type
        self.timestep_freq_shift = timestep_freq_shift
        self.mlp_norm_eps = mlp_norm_eps
        self.qk_norm = qk_norm
        self.position_embedding = position_embedding
        self.rope_theta = rope_theta
        self.rope_scale = rope_scale
        self.mlp = mlp
        self.norm = norm
        self.value_residual = value_residual
        self.timestep_scale = timestep_scale
        self.timestep_offset = timestep_offset
        if "num_labels" in kwargs and not _is_int(kwargs["num_labels"], at_least=0, at_most=MAX_LABELS):
            raise ValueError(f"num_labels={kwargs['num_labels']!r}: leave it out, DiT's classes are num_classes")
        if unknown is not None:
            raise ValueError(
                f"unknown field {unknown!r}: {_closest(unknown)} The fields of DiTConfig are {', '.join(DIT_FIELDS)}. "
                "DiTConfig.from_dict takes the content of a file, with fields of other libraries"
            )
        self.check()
        # A pair travels as JSON's list; a square one is an int, which is what diffusers' pipelines read.
        height, width = self.sample_height_width
        self.sample_size = height if height == width else [height, width]
        rows, columns = self.rope_scale_height_width
        self.rope_scale = rows if rows == columns else [rows, columns]
        super().__init__(**kwargs)

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> "DiTConfig":
        """Make the configuration of one of the paper's sizes, such as "DiT-XL/2".

        Args:
            name: Key of `PAPER_SIZES`.
            **overrides: Fields that differ from the paper's, for example `sample_size=64` for 512 px.

        Raises:
            ValueError: If the name is not one of the paper's.
        """
        if name not in PAPER_SIZES:
            raise ValueError(f"unknown size {name!r}: choose one of {', '.join(PAPER_SIZES)}, or call DiTConfig(...)")
        size = PAPER_SIZES[name]
        fields = {field: getattr(size, field) for field in size._fields[:4]}
        return cls(**{**fields, **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from the content of a file, as transformers does.

        Fields that neither DiT nor the installed transformers knows are kept with a warning, and written back by
        `save_pretrained`: transformers' `Trainer` adds `use_cache`, for example, and later versions add more.

        Args:
            config_dict: Content of the file.
            **kwargs: Fields that replace those of the content.

        Raises:
            ValueError: As the constructor; if an argument's name resembles a field's; if the content names an attention
                that would be fetched from the Hub and run; or if transformers cannot read the value of a field.
        """
        if not isinstance(config_dict, dict):
            raise ValueError(f"the configuration is a {type(config_dict).__name__}, not an object of names and values")
        for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            if config_dict.get(name) not in (None, *ATTENTIONS):
                raise ValueError(
                    f"the configuration asks for {name}={config_dict[name]!r}, none of {', '.join(ATTENTIONS)}: take "
                    "it out of config.json, and pass attn_implementation=... if you want that code"
                )
        if isinstance(config_dict.get("dtype"), (int, float, list)):  # transformers fails on such a value when it saves
            raise ValueError(f"the configuration has dtype={config_dict['dtype']!r}: it is a name, such as 'float32'")
        for name in kwargs:
            if not _is_field(name) and name not in config_dict and (close := _closest(name, cutoff=0.8)):
                raise ValueError(f"unknown field {name!r}: {close}")
        foreign = {name: kwargs.pop(name, value) for name, value in config_dict.items() if not _is_field(name)}
        known = {name: value for name, value in config_dict.items() if name not in foreign}
        for name in foreign:
            if callable(getattr(cls, name, None)):
                raise ValueError(f"the configuration sets {name!r}, a method of DiTConfig: take it out of config.json")
        try:
            built = super().from_dict(known, **kwargs)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"the configuration has a field that transformers cannot read: {error}") from error
        if foreign:
            config_logger.warning(f"The configuration keeps fields that a DiT does not use: {', '.join(foreign)}.")
            config: DiTConfig = built[0] if isinstance(built, tuple) else built
            config.__dict__.update(foreign)
        return built

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """Build a configuration from a file, as `from_dict` does from its content."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> Any:
        with open(json_file, encoding="utf-8") as file:
            if not isinstance(json.load(file), dict):  # transformers takes a dictionary for granted
                raise ValueError(f"{json_file} holds no object of names and values: fetch config.json again")
        return super()._dict_from_json_file(json_file)

    def _get_generation_parameters(self) -> dict[str, Any]:
        return {}  # transformers would refuse to save them; a DiT keeps such fields of a file as they are

    @property
    def paper_size(self) -> str | None:
        """Name of the paper's size with the same layers, width, heads and patches; None if there is none."""
        fields = (self.num_hidden_layers, self.hidden_size, self.num_attention_heads, self.patch_size)
        return next((name for name, size in PAPER_SIZES.items() if size[:4] == fields), None)

    @property
    def out_channels(self) -> int:
        """Number of channels of the model's output: C for eps, and C more if the variance is learned."""
        return 2 * self.in_channels if self.learn_sigma else self.in_channels

    @property
    def sample_height_width(self) -> tuple[int, int]:
        """Height and width of a latent, in latent pixels."""
        size = self.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def rope_scale_height_width(self) -> tuple[float, float]:
        """Distance of neighbouring rows and of neighbouring columns of patches, as a rotary embedding counts them."""
        scale = self.rope_scale
        return (scale, scale) if isinstance(scale, (int, float)) else (scale[0], scale[1])

    @property
    def grid_height_width(self) -> tuple[int, int]:
        """Height and width of a latent, in patches."""
        height, width = self.sample_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Width M of each feed-forward."""
        width = int(self.hidden_size * self.mlp_ratio)
        return width if self.mlp == "gelu" else max(8, round(width * 2 / 3 / 8) * 8)

    @property
    def has_null_class(self) -> bool:
        """Whether the label table has a row for "no class", which label dropout and guidance use."""
        return self.num_classes > 0 and self.class_dropout_prob > 0

    @property
    def null_class_id(self) -> int:
        """The label that stands for "no class".

        Raises:
            ValueError: If there is no such label, in an unconditional model or without label dropout.
        """
        if not self.has_null_class:
            raise ValueError(
                f"num_classes={self.num_classes} with class_dropout_prob={self.class_dropout_prob} has no null class: "
                "dropping labels, and guidance, need a model trained with num_classes > 0 and class_dropout_prob > 0"
            )
        return self.num_classes

    def check(self) -> None:
        """Refuse values outside their limits. The model calls this again, as fields can be set after construction.

        Raises:
            ValueError: If a value is outside its limits, with the field, the value, the limit and what to set.
        """
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "in_channels"):
            self._require(name, _is_int(getattr(self, name), at_least=1), "a whole number of at least 1")
        self._require("num_classes", _is_int(self.num_classes, at_least=0), "a whole number, 0 for unconditional")
        for name in ("learn_sigma", "qk_norm", "value_residual"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require("class_dropout_prob", _is_number(self.class_dropout_prob, 0, 1), "a number in [0, 1]")
        self._require("mlp_ratio", _is_number(self.mlp_ratio, 1e-3, 1e3), "a number in [0.001, 1000]")
        self._require("mlp_ratio", self.hidden_size * self.mlp_ratio >= 1, "at least 1 / hidden_size")
        self._require("mlp_norm_eps", _is_number(self.mlp_norm_eps, 0, 1), "a number in [0, 1]")
        self._require("timestep_freq_shift", _is_number(self.timestep_freq_shift, 0, 1), "a number in [0, 1]")
        is_factor = _is_number(self.timestep_scale, -1e3, 1e3) and self.timestep_scale != 0
        self._require("timestep_scale", is_factor, "a number in [-1000, 1000] that is not 0")
        self._require("timestep_offset", _is_number(self.timestep_offset, -1e6, 1e6), "a number in [-1e6, 1e6]")
        for name, choices in _choices().items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        self._require("hidden_size", self.hidden_size % 4 == 0, "a multiple of 4, for the position embedding")
        self._require(
            "hidden_size",
            self.hidden_size % self.num_attention_heads == 0,
            f"a multiple of num_attention_heads={self.num_attention_heads}",
        )
        self._require("rope_theta", _is_number(self.rope_theta, 1, 1e9), "a number in [1, 1e9]")
        scale = self.rope_scale if isinstance(self.rope_scale, (list, tuple)) else [self.rope_scale] * 2
        is_scale = len(scale) == 2 and all(_is_number(each, 1e-6, 1e6) for each in scale)
        self._require("rope_scale", is_scale, "a number in [1e-6, 1e6], or a pair (rows, columns) of them")
        if self.position_embedding == "sincos":
            for name, default in (("rope_theta", 100), ("rope_scale", 1)):
                limit = f"{default}, which it is without a rotary embedding, or position_embedding to rope or both"
                self._require(name, getattr(self, name) == default, limit)
        else:
            fits = self.hidden_size // self.num_attention_heads % 4 == 0
            self._require("hidden_size", fits, "a multiple of 4 * num_attention_heads, for the rotary embedding")
        size = self.sample_size if isinstance(self.sample_size, (list, tuple)) else [self.sample_size] * 2
        is_size = len(size) == 2 and all(_is_int(side, at_least=1) for side in size)
        self._require("sample_size", is_size, "a whole number of at least 1, or a pair (height, width) of them")
        fits = all(side % self.patch_size == 0 for side in size)
        self._require("sample_size", fits, f"a multiple of patch_size={self.patch_size} on both sides")

    def _require(self, name: str, ok: bool, limit: str) -> None:
        if not ok:
            raise ValueError(f"{name}={getattr(self, name)!r} is not valid: set {name} to {limit}")


def _choices() -> dict[str, tuple[str, ...]]:
    """The fields that take one of several names."""
    types = {"block_type": BlockType, "position_embedding": PositionEmbedding, "mlp": FeedForward, "norm": NormType}
    return {name: get_args(kind) for name, kind in types.items()}


def _is_int(value: Any, at_least: int, at_most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


DIT_FIELDS = tuple(inspect.signature(DiTConfig).parameters)[:-1]  # without **kwargs


def _is_field(name: str) -> bool:
    """Return whether DiT or the installed transformers declares a field. A private one begins with "_"."""
    if name.startswith("_") or name in DIT_FIELDS or name in TRANSFORMERS_FIELDS:
        return True
    base = PreTrainedConfig()
    return hasattr(base, name) and not callable(getattr(base, name))


def _closest(name: str, cutoff: float = 0.62) -> str:
    """Return a question for the field whose name resembles a wrong one most, or nothing."""
    close = get_close_matches(name, DIT_FIELDS, n=1, cutoff=cutoff)
    return f"did you mean {close[0]!r}?" if close else ""
