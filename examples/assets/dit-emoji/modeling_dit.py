# Made of configuration_dit.py, files.py, places.py, layers.py, weight_files.py, blocks.py, embeddings.py, pretrained.py, modeling_dit.py.

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
import difflib
from difflib import get_close_matches
import hashlib
import inspect
import json
import math
import os
from pathlib import Path, PurePath
import re
import shutil
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args
import warnings

from huggingface_hub import CommitOperationDelete, HfApi
from safetensors import SafetensorError
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict
from transformers.utils import ModelOutput, logging
from transformers.utils.hub import cached_file
from transformers.utils.output_capturing import capture_outputs

# --- configuration_dit.py ---
# The architecture of a DiT, and the paper's twelve sizes (Peebles & Xie 2022, arXiv 2212.09748, table 1).

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

# --- files.py ---
# Files and folders that are either whole or not there: written under a hidden name, flushed to the disk, then renamed.
#
# The hidden name of `weights.npz` is `.weights.npz.PROCESS.partial`; that of the folder `pipeline` is
# `.pipeline.PROCESS.partial`. A process that is killed leaves such a name behind, and `remove_leftovers` deletes it.
#
# Each operation on the disk is announced before it happens, so that a caller can watch a save:
#
#     with watched(lambda operation, path: print(operation, path.name)):
#         write_text(Path("status.json"), "{}")  # write, flush, rename, flush

PARTIAL = ".partial"  # suffix of what is not whole yet
REPLACED = ".replaced"  # suffix of a folder whose successor is about to take its name
DELETED = ".deleted"  # suffix of a folder whose files are being deleted

Watcher = Callable[[str, Path], None]  # operation ("create", "write", "flush", "rename" or "delete"), path
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Call `watcher` before each operation on the disk that this thread does through this module inside the block.

    What the watcher raises ends the operation before it has begun.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def announce(operation: str, path: Path) -> None:
    """Tell the watcher of this thread, if it has one, that an operation comes now.

    Args:
        operation: Name of the operation: "create" a folder, "write", "flush", "rename" or "delete".
        path: File or folder that the operation changes.
    """
    if watcher := _watcher.get():
        watcher(operation, path)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    announce("flush", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, new_path: Path) -> None:
    """Give a file or a folder another name in the same folder, in one step that a kill cannot cut in two.

    Args:
        path: File or folder, flushed.
        new_path: New name. A file of this name is replaced; a folder of this name must not exist.
    """
    announce("rename", path)
    os.replace(path, new_path)
    flush(new_path.parent)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a hidden name to write a file to, and give the file its final name if the block ends without an error.

    Args:
        path: Final name of the file, in a folder that exists. A file of this name is replaced.
    """
    partial = _hidden(path, PARTIAL)
    try:
        announce("write", partial)
        yield partial
        flush(partial)
        rename(partial, path)
    finally:
        if partial.exists():
            announce("delete", partial)
            partial.unlink()


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder to fill, and give it its final name if the block ends without an error.

    A folder that has the final name already is moved aside, and deleted after the new folder has its name. A kill
    between the two renames leaves no folder of that name; `remove_leftovers` then puts the old folder back, as does the
    next call for the same name.

    Args:
        path: Final name of the folder. Parents that are missing are made.
    """
    remove_leftovers(path.parent, path.name)
    partial = _hidden(path, PARTIAL)
    try:
        announce("create", partial)
        partial.mkdir(parents=True)
        yield partial
        for entry in [*sorted(partial.rglob("*")), partial]:
            flush(entry)
        if path.exists():
            rename(path, _hidden(path, REPLACED))
        rename(partial, path)
    finally:
        remove_leftovers(path.parent, path.name)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def remove_folder(path: Path) -> None:
    """Delete a folder; it has a hidden name before its first file is gone, so a kill leaves no half of a folder."""
    hidden = _hidden(path, DELETED)
    rename(path, hidden)
    _remove_hidden(hidden)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what killed processes left in a folder under hidden names, and put back a folder that they moved aside.

    Args:
        folder: Folder to clean; it need not exist.
        name: Final name of the files and folders, as a pattern.
    """
    for path in _find_hidden(folder, name, REPLACED):
        final = path.with_name(path.name[1:].removesuffix(REPLACED).rpartition(".")[0])
        if not final.exists():
            rename(path, final)
    for suffix in (PARTIAL, REPLACED, DELETED):
        for path in _find_hidden(folder, name, suffix):
            _remove_hidden(path)


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{suffix}")


def _find_hidden(folder: Path, name: str, suffix: str) -> list[Path]:
    return sorted(folder.glob(f".{name}.*{suffix}"))


def _remove_hidden(path: Path) -> None:
    announce("delete", path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

# --- places.py ---
# Where a model lies: a local folder or file, or a repository on the Hub; and what a wrong name most likely means.
#
# Libraries take every name that is no folder for a repository on the Hub, and answer a mistyped path with errors of the
# network. Here one rule holds for pipelines, models, autoencoders, adapters and data sets:
#
# 1. What lies on the disk is meant, whatever the Hub holds.
# 2. A name that no repository can have (`./photos`, `a/b/c`, `model.pt`) is a path: without such a file it is an error.
# 3. Any other name is a repository, in the cache or on the Hub. If there is none, the error names both places. If there
#    is one, and a folder here is called like its first half (`out` for `out/photos`), a warning says what was taken.
#
# A folder of another kind is answered with what to pass instead. Example: `out/photos` is the folder of a training, whose
# pipeline is `out/photos/pipeline`.
#
# This file travels to the Hub as a part of `modeling_dit.py` and `pipeline_dit.py`.

REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<!\.git)")  # "user/name" on the Hub
FILES = re.compile(r"\.(pt|pth|ckpt|bin|safetensors|npz|json|yaml|yml|csv|zip|tar)$", re.IGNORECASE)
CHECKPOINTS = (".pt", ".pth", ".ckpt")  # of the original code, wherever they lie
NAMES_LISTED = 5
SECONDS_TO_REACH_THE_HUB = 10.0


class NothingThere(OSError, ValueError):
    """Nothing lies where a name points: an OSError, as transformers raises, and a ValueError, as for any wrong name."""


def is_path(name: str, *, may_be_one_word: bool = False) -> bool:
    """Return whether a name is a local path: there is something, or no repository can be called so.

    Args:
        name: Name that a user gave.
        may_be_one_word: Whether a repository may have a name without a slash, as some data sets do.
    """
    if name.startswith((".", "~", os.sep)) or FILES.search(name) or os.path.exists(name):
        return True
    if "/" not in name and may_be_one_word:
        return REPOSITORY.fullmatch(f"user/{name}") is None
    return REPOSITORY.fullmatch(name) is None


def places_to_look(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `check_repository` among those of a library's `from_pretrained`."""
    names = ("cache_dir", "local_files_only", "token")
    return {name: options[name] for name in names if options.get(name) is not None}


def begins_with_folder(name: str) -> bool:
    """Return whether the first half of a name such as `out/photos` is a local folder: it may be a mistyped path."""
    return os.path.isdir(os.path.dirname(name))


def check_repository(
    name: str,
    repo_type: str = "model",
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> None:
    """Refuse the id of a repository that is neither in the cache nor on the Hub, which is asked once.

    Args:
        name: Name without a local file or folder, such as "facebook/DiT-XL-2-256".
        repo_type: "model" or "dataset".
        cache_dir: Folder of the cache; None for that of huggingface_hub.
        local_files_only: Whether to look into the cache only.
        token: Token for a private repository.

    Raises:
        ValueError: If there is no such repository or the token may not see it, or if the Hub cannot be asked. The
            message also names what the nearest local folder holds.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    what = {"model": "model", "dataset": "data set"}[repo_type]
    cached = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=repo_type), "snapshots")
    if not cached.is_dir():
        if local_files_only or constants.HF_HUB_OFFLINE:
            why = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE is set"
            missing = f"the cache has no {what} of this name either, and the Hub is not asked, as {why}"
            raise NothingThere(f"{describe_missing(name)}; {missing}")
        try:
            HfApi(token=token).repo_info(name, repo_type=repo_type, timeout=SECONDS_TO_REACH_THE_HUB)
        except GatedRepoError:
            pass  # it is there: whoever loads it names what is missing
        except RepositoryNotFoundError as error:
            missing = f"the Hub has no {what} of this name either, or the token may not see it"
            raise NothingThere(f"{describe_missing(name)}; {missing}") from error
        except HfHubHTTPError:
            return  # whoever loads it tries again
        except (HTTPError, OSError) as error:
            unknown = f"the Hub, which may have a {what} of this name, cannot be reached ({type(error).__name__})"
            raise NothingThere(f"{describe_missing(name)}; {unknown}") from error
    if begins_with_folder(name):
        folder = os.path.dirname(name)
        warnings.warn(f"{name} is taken from the Hub: the folder {folder} here does not hold it", stacklevel=2)


def describe_missing(name: str) -> str:
    """Say that there is no such file or folder, and what the nearest folder holds instead."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    while not path.parent.is_dir():
        path = path.parent
    present = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, present, n=3) or present[:NAMES_LISTED]
    hint = f": {path.parent} holds {', '.join(near)}" if near else f": {path.parent} is empty"
    return f"there is no file or folder {name}{hint if path.parent.parent != path.parent else ''}"


def describe_folder(folder: Path, needed: str = "model_index.json") -> str:
    """Say what a folder is that lacks a file, and what to pass instead.

    Args:
        folder: Folder.
        needed: File that it lacks: `model_index.json` of a pipeline, or `config.json` of a model.
    """
    if (folder / "pipeline" / "model_index.json").is_file():
        return f"{folder} is the folder of a training: pass its pipeline, {folder / 'pipeline'}"
    if (folder / "status.json").is_file() or (folder / "checkpoints").is_dir():
        return f"{folder} is the folder of a training that has saved no pipeline yet: see `dit-hf status {folder}`"
    if (folder / "manifest.json").is_file() or any(folder.glob("step-*/manifest.json")):
        training = next((each for each in folder.parents if (each / "settings.yaml").is_file()), folder.parent)
        return (
            f"{folder} holds checkpoints, from which only their own training goes on: pass its pipeline, "
            f"{training / 'pipeline'}"
        )
    if (folder / "adapter_config.json").is_file():
        return f"{folder} is an adapter: pass the model that it was trained for, then call load_lora_weights"
    if (folder / "model_index.json").is_file():
        parts = sorted(file.parent.name for file in folder.glob("*/config.json"))
        return f"{folder} is a pipeline with {', '.join(parts)}: pass the folder of one of them"
    if (folder.parent / "model_index.json").is_file():
        return f"{folder} is a part of a pipeline: pass {folder.parent}"
    if inner := sorted(file.parent for file in folder.glob("*/model_index.json")):
        return f"{folder} is no pipeline, but holds some: pass {' or '.join(map(str, inner[:NAMES_LISTED]))}"
    present = sorted(entry.name for entry in folder.iterdir())
    held = f"but {', '.join(present[:NAMES_LISTED])}" if present else "as it is empty"
    return f"{folder} has no {needed}, {held}: pass a folder that save_pretrained wrote"


def describe_file(file: Path) -> str | None:
    """Say what to pass instead of a file that belongs to a saved model; None for another file."""
    if file.suffix.lower() in CHECKPOINTS:
        return None
    for folder in (file.parent, file.parent.parent):
        if (folder / "model_index.json").is_file():
            return f"{file} is a file of a pipeline: pass its folder, {folder}"
    if (file.parent / "config.json").is_file():
        return f"{file} is a file of a model: pass its folder, {file.parent}"
    if file.suffix.lower() in (".json", ".yaml", ".yml", ".md", ".txt", ".py", ".png", ".jpg", ".jpeg", ".npz", ".csv"):
        return f"{file} is no checkpoint: pass the folder of a pipeline, or a checkpoint such as model.pt"
    return None


def check_pipeline_source(source: str | Path, *, asks_for_each: bool = False, **hub: Any) -> None:
    """Refuse what can only be a mistake in place of a pipeline: its folder, its id on the Hub, or a checkpoint's file.

    Args:
        source: Folder, file, or id on the Hub.
        asks_for_each: Whether to look for each id on the Hub. Otherwise only one whose first half is a local folder is
            looked for, because a pipeline that is loaded next asks for all others.
        **hub: Arguments of `check_repository`.

    Raises:
        ValueError: If there is nothing, or a file or folder of another kind; the message says what to pass instead.
    """
    _check(source, "model_index.json")
    if not os.path.exists(source) and (asks_for_each or begins_with_folder(str(source))):
        check_repository(str(source), **hub)


def check_model_source(source: str | Path, subfolder: str | None = None, **hub: Any) -> None:
    """Refuse what can only be a mistake in place of the folder of one model, such as an autoencoder, or its id.

    Args:
        source: Folder, or id on the Hub.
        subfolder: Folder of the model in it.
        **hub: Arguments of `check_repository`.

    Raises:
        ValueError: As in `check_pipeline_source`; also if the source is a checkpoint's file, or if an id is that of no
            repository.
    """
    if Path(source).is_file():
        raise ValueError(describe_file(Path(source)) or f"{source} is a file: pass the folder of a model")
    _check(source, os.path.join(subfolder or "", "config.json"))
    if not os.path.exists(source):
        check_repository(str(source), **hub)


def check_adapter_source(source: str | Path, **hub: Any) -> None:
    """Refuse what is neither the folder of an adapter nor an id on the Hub.

    Args:
        source: Folder, or id on the Hub.
        **hub: Arguments of `check_repository`.

    Raises:
        ValueError: If there is nothing, or a file; or if the id is that of no repository.
    """
    if Path(source).is_file():
        raise ValueError(f"{source} is a file: pass the folder of an adapter")
    if is_path(str(source)) and not os.path.exists(source):
        raise NothingThere(describe_missing(str(source)))
    if not os.path.exists(source):
        check_repository(str(source), **hub)


def _check(source: str | Path, needed: str) -> None:
    path = Path(source)
    if path.is_file():
        if (told := describe_file(path)) is not None:
            raise ValueError(told)
    elif path.is_dir():
        if not (path / needed).is_file():
            raise ValueError(describe_folder(path, needed))
    elif is_path(str(source)):
        raise NothingThere(describe_missing(str(source)))

# --- layers.py ---
# The layers that blocks are made of: linear maps with their initialisation, norm, feed-forward and attention.
#
# A layer of a block is a `BlockLayer`: it names those of its parts that LoRA adapts and those that a cache may leave out.
# A new layer is a new subclass; LoRA and the caches read the names, and need no change.
#
# Shapes: B samples, S tokens of a block, K conditioning tokens, D width, M width of the feed-forward, h heads of d = D/h.

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

# --- weight_files.py ---
# Files of weights in a folder: saved as a whole, and never in two forms of which one is outdated.
#
# Weights have one of two forms: a single file, `model.safetensors`, or shards, `model-00001-of-00002.safetensors` and so
# on, listed in `model.safetensors.index.json`. If a folder holds both, transformers reads the single file and diffusers
# the shards, whichever is newer. A variant is a name between the two: `model.fp16.safetensors`. diffusers' names begin
# with `diffusion_pytorch_model`, older ones of transformers with `pytorch_model`.

# Modules that torch.compile, data parallelism, activation checkpointing and FSDP put around another one.
WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

STEM = r"(?P<stem>model|pytorch_model|diffusion_pytorch_model)"
VARIANT = r"(?:\.(?P<variant>\w+))?"
FORMS = {
    "index": re.compile(rf"{STEM}\.(?P<format>safetensors|bin)\.index{VARIANT}\.json"),
    "shard": re.compile(rf"{STEM}{VARIANT}-\d{{5}}-of-\d{{5}}\.(?P<format>safetensors|bin)"),
    "single": re.compile(rf"{STEM}{VARIANT}\.(?P<format>safetensors|bin)"),
}


class WeightFile(NamedTuple):
    """What the name of a file of weights says."""

    library: str  # "transformers" or "diffusers"
    variant: str | None
    format: str  # "safetensors" or "bin"
    form: str  # a key of `FORMS`


def strip_wrappers(key: str) -> str:
    """Take the names of wrappers out of a weight's key: "blocks.0._orig_mod.attn.qkv.bias" has one in the middle."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def refuse_adapters(model: Any, what: str) -> None:
    """Refuse a model with LoRA adapters, in use or disabled, where its weights alone are wanted.

    Args:
        model: Model, possibly with layers of PEFT.
        what: What is about to happen, for the message: "saving".

    Raises:
        ValueError: If there is an adapter.
    """
    if names := getattr(model, "peft_config", None):
        raise ValueError(
            f"an adapter is loaded ({', '.join(names)}): call fuse_lora() to add it to the weights, or "
            f"unload_lora_weights() to leave it out, before {what}"
        )


def read_name(file: PurePath) -> WeightFile | None:
    """Read the name of a file, or return None if it is no file of weights."""
    for form, pattern in FORMS.items():
        match = pattern.fullmatch(file.name)
        if match and (match["stem"], match["format"]) != ("model", "bin"):  # a name that neither library writes
            library = "diffusers" if match["stem"].startswith("diffusion") else "transformers"
            return WeightFile(library, match["variant"], match["format"], form)
    return None


def superseded(present: Iterable[PurePath], written: Iterable[PurePath]) -> list[PurePath]:
    """Find the files of weights that written ones make outdated: those of the same folder and variant.

    Example: shards and an index were written to a folder that holds `model.safetensors`, `model.fp16.safetensors` and
    `config.json`; the first is outdated.

    Args:
        present: Files of a folder or of a repository, by their paths in it.
        written: Files that were just written, by the same kind of paths.
    """
    new = set(written)
    kinds = {(file.parent, name.variant) for file in new if (name := read_name(file))}
    return sorted(
        file for file in set(present) - new if (name := read_name(file)) and (file.parent, name.variant) in kinds
    )


def refuse_two_forms(folder: Path, variant: str | None = None) -> None:
    """Refuse a folder that holds both a single file and an index of shards, as one of them is outdated.

    Args:
        folder: Folder of a model of transformers or diffusers.
        variant: Variant that is to be loaded.

    Raises:
        ValueError: If there are two forms, with the files to choose from.
    """
    refuse_two_forms_among([file.relative_to(folder) for file in folder.iterdir()], str(folder), variant)


def refuse_two_forms_among(files: Iterable[PurePath], source: str, variant: str | None = None) -> None:
    """Refuse files of which a folder has both a single file of weights and an index of shards.

    Args:
        files: Files of a folder or of a repository, by their paths in it.
        source: Folder or repository, for the message.
        variant: Variant that is to be loaded.

    Raises:
        ValueError: As in `refuse_two_forms`.
    """
    found = {(file.parent, name): file for file in files if (name := read_name(file)) and name.variant == variant}
    for (folder, name), file in found.items():
        index = found.get((folder, name._replace(form="index")))
        if name.form == "single" and index:
            raise ValueError(
                f"{source} holds the weights twice, as {file} and as the shards of {index}, and one of them is "
                f"outdated: delete {file}, or delete {index} with its shards"
            )


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; if the block ends without an error, move its files to their place.

    A file of weights in `folder` that the new ones supersede is removed once all new files are in place: shards after
    a single file was written, for example. If the block fails, `folder` stays as it was.

    Args:
        folder: Folder of a model, or of a pipeline with the folders of its parts. It is created if it does not exist
            and something was written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())  # on the same file system
    with TemporaryDirectory(prefix=".saving-", dir=nearest) as temporary:
        yield Path(temporary)
        written = [file.relative_to(temporary) for file in sorted(Path(temporary).rglob("*")) if file.is_file()]
        indexes = [file for file in written if (name := read_name(file)) and name.form == "index"]
        for index in indexes:
            (folder / index).unlink(missing_ok=True)  # the old index must never list new shards
        for file in [*(file for file in written if file not in indexes), *indexes]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            flush(Path(temporary, file))
            rename(Path(temporary, file), folder / file)
    folders = {folder / file.parent for file in written}
    present = [file.relative_to(folder) for parent in folders for file in parent.iterdir()]
    for outdated in superseded(present, written):
        (folder / outdated).unlink()

# --- blocks.py ---
# The four block designs of the paper and the two final layers: how timestep and label enter a transformer.
#
# A block is a ViT block, x + attention(norm(x)) followed by x + mlp(norm(x)). The conditioning, an embedding of the
# timestep t and of the label y, can enter it in four ways (Peebles & Xie 2022, section 3.2):
#
#     in-context        [t, y] are two more tokens of the sequence, removed after the last block
#     cross-attention   between attention and mlp, the tokens attend to [t, y]
#     adaLN             norm(x) * (1 + scale(c)) + shift(c), with c = t + y: one small Linear per block
#     adaLN-Zero        adaLN, and each branch times gate(c), which starts at zero: a fresh block is the identity
#
# The paper finds adaLN-Zero the best at nearly the least compute. A design states its own facts as class attributes of
# its block; LoRA, the caches and the counters of `analysis` read them.
#
# Shapes: B samples, N patches, S tokens of a block (N, or N + K in-context), D width, K = 2 conditioning tokens [t, y]
# (1 without classes), p patch size, C output channels. The conditioning may have B = 1, shared by a whole batch.

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

# --- embeddings.py ---
# Latents to tokens and back, and the embeddings of position, timestep and label (Peebles & Xie 2022, section 3.2).
#
# Shapes: B samples, C latent channels, H x W latent, p patch size, N = (H/p)(W/p) patches, D width.

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

# --- pretrained.py ---
# Loading and saving a model as transformers does, but never silently a wrong one.

IS_PIPELINE = '{} is a pipeline: pass subfolder="transformer", or load it with DiTPipeline'


def _has_file(source: str | Path, name: str, options: dict[str, Any]) -> bool:
    """Return whether a folder or a repository has a file; a repository that cannot be read has none."""
    given = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    hub = {name: options[name] for name in given if options.get(name) is not None}
    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub) is not None
    except OSError:
        return False


def _is_pipeline(source: str | Path, options: dict[str, Any]) -> bool:
    return _has_file(source, "model_index.json", options)


def _check_repository(source: str, files: Sequence[str], options: dict[str, Any]) -> None:
    """Refuse a repository that has an index of shards beside the single file that was read."""
    for file in files:
        name = read_name(PurePath(file))
        suffix = f".{name.variant}" if name and name.variant else ""
        index = f"model.safetensors.index{suffix}.json"
        if name and name.form == "single" and name.format == "safetensors" and _has_file(source, index, options):
            refuse_two_forms_among([PurePath(file), PurePath(index)], str(source), name.variant)


def _check_folder(folder: Path, options: dict[str, Any]) -> None:
    """Refuse a folder that is no model's, or whose weights cannot be told apart."""
    if "config" not in options and not (folder / "config.json").is_file():
        if _is_pipeline(folder, {}):
            raise ValueError(IS_PIPELINE.format(folder))
        raise ValueError(describe_folder(folder, "config.json"))
    refuse_two_forms(folder, options.get("variant"))


def _check_weights(model: PreTrainedModel, info: dict[str, Any], may_differ: bool, where: str) -> None:
    """Refuse a loaded model that is not made of exactly the weights of its files."""
    weights = dict(model.named_parameters())
    if getattr(model, "hf_quantizer", None) is not None:  # a quantised weight has few operations
        weights = {key: weight for key, weight in weights.items() if type(weight.data) is Tensor}
    finite = {key: bool(weight.is_meta or weight.isfinite().all()) for key, weight in weights.items()}
    faults = {
        "of another shape": [] if may_differ else [key for key, *_ in info["mismatched_keys"]],
        "missing": info["missing_keys"],
        "left over": info["unexpected_keys"],
        "not finite": [key for key, is_finite in finite.items() if not is_finite],
    }
    for fault, keys in faults.items():
        if keys:
            listed = ", ".join(sorted(map(str, keys))[:3]) + (" ..." if len(keys) > 3 else "")
            raise ValueError(
                f"{where}: {len(keys)} weights are {fault}: {listed}. Fetch or convert the model again, or load what "
                "there is with strict=False"
            )


class DiTPreTrainedModel(PreTrainedModel):
    """What `DiTModel` changes in transformers' loading, saving and pushing."""

    config: DiTConfig
    config_class = DiTConfig
    base_model_prefix = "dit"

    @classmethod
    def from_pretrained(
        cls, source: Any = None, *args: Any, strict: bool = True, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a model as `transformers.PreTrainedModel.from_pretrained` does, and check its weights.

        Args:
            source: Folder, or id on the Hub.
            *args: As in transformers.
            strict: Whether to refuse weights that are missing, left over, of another shape or not finite. With False,
                what is missing is initialised at random, and transformers warns.
            output_loading_info: Whether to return a dictionary beside the model, of what was missing or left over.
            **kwargs: As in transformers.

        Raises:
            ValueError: If the weights do not make the model whole or are whole numbers, naming file and key; if the
                source is a pipeline; or if a folder or repository holds the weights twice.
        """
        folder = Path(source or "", kwargs.get("subfolder") or "")
        if source and folder.is_dir():
            _check_folder(folder, kwargs)
        elif source:
            check_model_source(source, kwargs.get("subfolder"), **places_to_look(kwargs))
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["ignore_mismatched_sizes"] = may_differ or strict  # transformers would not name them
        try:
            model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        except OSError as error:
            if not folder.is_dir() and not kwargs.get("subfolder") and _is_pipeline(source, kwargs):
                raise ValueError(IS_PIPELINE.format(source)) from error
            raise
        files = model.__dict__.pop("_read_from", ())
        if not folder.is_dir():
            _check_repository(source, files, kwargs)
        if model.pos_embed is not None:
            model.pos_embed.requires_grad_(False)  # transformers loads every weight as a trainable one
        if strict:
            _check_weights(model, info, may_differ, f"{', '.join(files)} of {source}")
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(
        model: "DiTPreTrainedModel", state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Refuse files that are damaged or hold whole numbers, which transformers would cast without a warning."""
        files = checkpoint_files or ()
        keys = set(state_dict or ())
        for file in files:
            try:
                weights = load_state_dict(file, map_location="meta")  # types and shapes only
            except SafetensorError as error:
                raise ValueError(f"{file} is cut short or no safetensors file: {error}") from error
            whole = sorted(key for key, weight in weights.items() if not weight.is_floating_point())
            if whole and getattr(model.config, "quantization_config", None) is None:
                raise ValueError(f"{file}: {whole[0]} is {weights[whole[0]].dtype}, weights are floating point numbers")
            keys |= weights.keys()
        if any(strip_wrappers(key) != key for key in keys):
            loaded = [state_dict] if state_dict is not None else [load_state_dict(file) for file in files]
            state_dict = {strip_wrappers(key): weight for part in loaded for key, weight in part.items()}
        model._read_from = [Path(file).name for file in files]
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a model as `transformers.PreTrainedModel.save_pretrained` does, without names of wrappers in its keys.

        New files replace those of an earlier save, single file or shards, once they are complete.

        Args:
            save_directory: Folder to write.
            is_main_process: As in transformers.
            state_dict: As in transformers.
            push_to_hub: Refused if True; see `push_to_hub`.
            max_shard_size: As in transformers. None for the default of transformers.
            variant: As in transformers.
            **kwargs: As in transformers.

        Raises:
            ValueError: If push_to_hub=True, or if an adapter is loaded.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True would be public by default: call the method push_to_hub instead")
        if (
            "_adapters" in self.__dict__
        ):  # loaded: transformers would save the adapter without its classes, and no weights
            refuse_adapters(self, "saving")
        if max_shard_size is not None:
            kwargs["max_shard_size"] = max_shard_size
        if kwargs.get("distributed_checkpoint"):  # every process writes its part to one folder
            return super().save_pretrained(save_directory, is_main_process, state_dict, variant=variant, **kwargs)
        state_dict = self.state_dict() if state_dict is None else state_dict
        state_dict = {strip_wrappers(key): weight for key, weight in state_dict.items()}
        with replaced_whole(Path(save_directory)) as folder:
            super().save_pretrained(folder, is_main_process, state_dict, variant=variant, **kwargs)

    def _upload_modified_files(self, working_dir: str | Path, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Push a saved model, and then delete the weights in the repository that the new ones supersede."""
        commit = super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        api, revision = HfApi(token=kwargs.get("token")), commit.pr_revision or kwargs.get("revision")
        written = [PurePath(file.name) for file in Path(working_dir).iterdir()]
        outdated = superseded(map(PurePath, api.list_repo_files(repo_id, revision=revision)), written)
        if outdated:
            deletions = [CommitOperationDelete(str(file)) for file in outdated]
            api.create_commit(repo_id, deletions, commit_message="Delete superseded weights", revision=revision)
        return commit

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> Any:
        """Push the model alone as transformers does; a new repository is private by default.

        Raises:
            ValueError: If an adapter is loaded.
        """
        refuse_adapters(self, "pushing")
        return super().push_to_hub(repo_id, private=private, **kwargs)

# --- modeling_dit.py ---
# The Diffusion Transformer: a vision transformer that predicts the noise in a latent (Peebles & Xie 2022).
#
# Diffusion adds noise to a latent, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, and trains a network to
# predict eps from x_t, the timestep t and the class y. Sampling starts from noise and removes the prediction step by
# step. Earlier networks were U-Nets; this one is a plain transformer, whose quality follows its compute:
#
#     x = patchify(x_t) + positions                    (B, N, D)      embeddings.py
#     c = embed(t) + embed(y)                          (B, D)         embeddings.py
#     x = block(x, c), for each of the blocks          (B, N, D)      blocks.py
#     eps, v = unpatchify(final_layer(x, c))           2 (B, C, H, W) blocks.py, embeddings.py
#
# v interpolates the logarithm of the variance between its two bounds (Nichol & Dhariwal 2021, eq. 15). Patches of half
# the side are four times as many tokens: more compute, about the same number of parameters.
#
# Shapes: B samples, C latent channels, H x W latent, p patch size, N = (H/p)(W/p) patches, D width,
# h heads, K = 2 conditioning tokens [t, y] (1 without classes), S = N tokens in a block (N + K in-context).
# The conditioning may have B = 1, shared by a whole batch. Weights carry the names of the authors' checkpoints.
#
# Precision: with half-precision weights, or under autocast, the timestep's sines, the residual stream, the norms and
# adaLN's arithmetic stay in float32; matrix products and attention run in the lower precision.

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
