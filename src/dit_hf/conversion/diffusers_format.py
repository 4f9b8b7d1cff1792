"""diffusers' `DiTTransformer2DModel`: other keys for the same tensors, and two numbers it computes otherwise.

It divides the timestep's frequencies by 127 where the original divides by 128 (`timestep_freq_shift` 1 and 0), and its
second norm has the epsilon 1e-5 where the original has 1e-6 (`mlp_norm_eps`). Weights that were trained by the original
and packaged for diffusers, such as `facebook/DiT-XL-2-256`, are run here as they were trained.
"""

import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiTTransformer2DModel
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers.utils import logging

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel, position_embedding
from .assemble import assemble, check_keys, empty_model, unwrap
from .deviation import deviation_of
from .safe_load import CheckpointError, StoredTensor, read_checkpoint, stored

logger = logging.get_logger(__name__)

# Module of DiTModel -> modules of diffusers'. Several are stacked in ours; {d} without one in ours is a copy per block.
EMBEDDERS = "transformer_blocks.{d}.norm1.emb"
RULES: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": (f"{EMBEDDERS}.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": (f"{EMBEDDERS}.timestep_embedder.linear_2",),
    "y_embedder.embedding_table": (f"{EMBEDDERS}.class_embedder.embedding_table",),
    "blocks.{d}.adaLN_modulation.1": ("transformer_blocks.{d}.norm1.linear",),
    "blocks.{d}.attn.qkv": tuple(f"transformer_blocks.{{d}}.attn1.to_{part}" for part in "qkv"),
    "blocks.{d}.attn.proj": ("transformer_blocks.{d}.attn1.to_out.0",),
    "blocks.{d}.mlp.fc1": ("transformer_blocks.{d}.ff.net.0.proj",),
    "blocks.{d}.mlp.fc2": ("transformer_blocks.{d}.ff.net.2",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
POSITIONS = "pos_embed"  # diffusers computes it anew

# What diffusers' configuration must say, or leave at its default, for the model to be a DiT.
FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
WHOLE_NUMBERS = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "sample_size",
    "patch_size",
    "num_embeds_ada_norm",
)
MAX_TOKENS = 2**16  # 64 times those of 512 px; no weight holds their number, and the position embedding is computed
WEIGHTS = "diffusion_pytorch_model"
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
TRAINED_AS = "_dit_hf"  # what `to_diffusers` leaves in the configuration; diffusers keeps and ignores a private field
THEIRS = {"timestep_freq_shift": 1.0, "mlp_norm_eps": 1e-5}
ORIGINAL = {"timestep_freq_shift": 0.0, "mlp_norm_eps": 1e-6}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def from_diffusers(
    source: DiTTransformer2DModel | str | os.PathLike,
    *,
    timestep_freq_shift: float | None = None,
    mlp_norm_eps: float | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **hub: Any,
) -> DiTModel:
    """Load a DiT from diffusers' form; weights keep their precision and share no memory with the source.

    Args:
        source: The model, its folder or that of its pipeline, or an id on the Hub.
        timestep_freq_shift: 0 for weights trained by the original, 1 for weights trained in diffusers. None: what
            `to_diffusers` noted, else 0, which is said once.
        mlp_norm_eps: Epsilon of the second norm; None takes the original's where the shift is 0, else the source's.
        subfolder: Where the model lies in a folder or repository; None looks for `transformer`.
        variant: Takes the weights of this variant, where there are some.
        use_safetensors: True refuses other files, False takes `.bin` files; None prefers safetensors.
        **hub: `cache_dir`, `force_download`, `local_files_only`, `revision` and `token` of `huggingface_hub`.

    Raises:
        CheckpointError: If the weights are damaged, of another model, or the copies in the blocks disagree.
        ValueError: If an argument is unknown.
    """
    unknown = set(hub) - set(HUB_ARGUMENTS)
    if unknown:
        raise ValueError(f"unknown argument {min(unknown)!r}: beside its own there are {', '.join(HUB_ARGUMENTS)}")
    theirs: Mapping[str, StoredTensor]
    if isinstance(source, DiTTransformer2DModel):
        config = dict(source.config)
        theirs = {key: stored(tensor) for key, tensor in source.state_dict().items()}
    else:
        folder = model_folder(source, subfolder, variant, use_safetensors, hub)
        config = read_json(folder / "config.json")
        theirs = _read_weights(folder, variant, use_safetensors)
    numbers = {"timestep_freq_shift": timestep_freq_shift, "mlp_norm_eps": mlp_norm_eps}
    ours = _our_config(config, theirs, numbers)
    return assemble(ours, _our_tensors(ours, theirs))


def to_diffusers(model: DiTModel) -> DiTTransformer2DModel:
    """Build diffusers' model with these weights, copied once for each block that diffusers gives its own embedders.

    A warning says how far its output is from the model's, where diffusers' fixed frequencies are not the model's.

    Args:
        model: A model with adaLN-Zero blocks, a square `sample_size`, `mlp_ratio` 4, classes and a null class.

    Raises:
        ValueError: If diffusers cannot express the model; the message names the field.
    """
    model = unwrap(model)
    config = model.config
    _check_expressible(config)
    with init_empty_weights():  # its position embedding is a buffer, and is computed
        theirs = DiTTransformer2DModel(
            num_attention_heads=config.num_attention_heads,
            attention_head_dim=config.hidden_size // config.num_attention_heads,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.num_hidden_layers,
            sample_size=config.sample_size,
            patch_size=config.patch_size,
            num_embeds_ada_norm=config.num_classes,
            norm_eps=config.mlp_norm_eps,
        )
    theirs.register_to_config(**{TRAINED_AS: {name: getattr(config, name) for name in THEIRS}})
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        for copy in _places(key, config.num_hidden_layers):
            parts = tensor.detach().chunk(len(copy))
            state |= {name: part.clone() for name, part in zip(copy, parts, strict=True)}
    theirs.load_state_dict(state, assign=True)
    theirs.pos_embed.pos_embed = theirs.pos_embed.pos_embed.to(model.device)
    _warn_of_deviation(model, theirs.pos_embed.pos_embed)
    return theirs.eval()


def _warn_of_deviation(model: DiTModel, their_positions: Tensor) -> None:
    deviation = deviation_of(model, timestep_freq_shift=1.0, mlp_norm_eps=model.config.mlp_norm_eps)
    if deviation:
        logger.warning(f"diffusers computes these weights with fixed timestep frequencies: {deviation}.")
    drift = (model.pos_embed.float() - their_positions.float()).abs().max()
    if drift > 1e-6:  # the two compute it alike but for rounding
        logger.warning(
            f"diffusers computes the position embedding anew: it differs by up to {drift:.2g} from this one."
        )


def _check_expressible(config: DiTConfig) -> None:
    fields = {
        "block_type": (config.block_type == "adaln_zero", "'adaln_zero'"),
        "sample_size": (isinstance(config.sample_size, int), "a square"),
        "mlp_ratio": (config.mlp_ratio == 4, "4"),
        "num_classes": (config.num_classes > 0, "at least 1"),
        "class_dropout_prob": (config.class_dropout_prob > 0, "more than 0, for the null class"),
    }
    for name, (expressible, limit) in fields.items():
        if not expressible:
            raise ValueError(f"{name}={getattr(config, name)!r}: diffusers' DiT has {limit} only")


def _places(key: str, num_layers: int) -> list[tuple[str, ...]]:
    """Where diffusers holds one of our tensors: a list of copies, each of them parts to be stacked."""
    if key == POSITIONS:
        return []
    module, _, kind = key.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.", module)
    parts = RULES[re.sub(r"^blocks\.\d+\.", "blocks.{d}.", module)]
    copies = [int(block[1])] if block else range(num_layers if "{d}" in parts[0] else 1)
    return [tuple(f"{part.format(d=d)}.{kind}" for part in parts) for d in copies]


def _our_tensors(config: DiTConfig, theirs: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give diffusers' tensors under our keys; that the copies agree is checked when one is read."""
    expected = dict(empty_model(config).named_parameters())
    places = {key: _places(key, config.num_hidden_layers) for key in expected}
    wanted = {name for copies in places.values() for copy in copies for name in copy}
    check_keys(wanted, theirs)
    tensors = {}
    for key, copies in places.items():
        if copies:
            tensors[key] = _stacked([[theirs[name] for name in copy] for copy in copies], copies)
    dtype = tensors["x_embedder.proj.weight"].dtype

    def positions() -> Tensor:
        return position_embedding(config.grid_height_width, config.hidden_size).to(dtype)

    return {**tensors, POSITIONS: StoredTensor(tuple(expected[POSITIONS].shape), dtype, positions)}


def _stacked(copies: list[list[StoredTensor]], names: list[tuple[str, ...]]) -> StoredTensor:
    """One tensor of ours: the parts stacked along the first dimension, equal in all copies."""
    first = copies[0]
    for name, part in zip((n for c in names for n in c), (p for c in copies for p in c), strict=True):
        if part.shape[1:] != first[0].shape[1:] or not part.shape:
            raise CheckpointError(f"{name} has the shape {part.shape}, {names[0][0]} has {first[0].shape}")
    shape = (sum(part.shape[0] for part in first), *first[0].shape[1:])

    def read() -> Tensor:
        tensor = torch.cat([part.read() for part in first]) if len(first) > 1 else first[0].read()
        for others, copy in zip(copies[1:], names[1:], strict=True):
            if not torch.equal(torch.cat([part.read() for part in others]), tensor):
                raise CheckpointError(
                    f"{copy[0]} and {names[0][0]} differ, and DiT has one for all blocks: train and save them as one"
                )
        return tensor

    return StoredTensor(shape, first[0].dtype, read)


def _our_config(
    theirs: Mapping[str, Any], tensors: Mapping[str, StoredTensor], numbers: Mapping[str, float | None]
) -> DiTConfig:
    if theirs.get("_class_name", CLASSES[0]) not in CLASSES:
        raise CheckpointError(f"its configuration is of {theirs['_class_name']}: a DiT is of {' or '.join(CLASSES)}")
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise CheckpointError(f"its configuration has {name}={theirs[name]!r}: a DiT has {value!r}")
    defaults = {name: field.default for name, field in inspect.signature(DiTTransformer2DModel).parameters.items()}
    config = {name: theirs.get(name, default) for name, default in defaults.items()}
    config["out_channels"] = config["out_channels"] or config["in_channels"]
    for name in WHOLE_NUMBERS:
        if type(config[name]) is not int or not 1 <= config[name] <= 2**20:
            raise CheckpointError(f"its configuration has {name}={config[name]!r}: a DiT has a whole number there")
    num_blocks = len({key.split(".")[1] for key in tensors if key.startswith("transformer_blocks.")})
    if config["num_layers"] != num_blocks:
        raise CheckpointError(f"its configuration has num_layers={config['num_layers']}, its weights {num_blocks}")
    if (config["sample_size"] // config["patch_size"]) ** 2 > MAX_TOKENS:
        raise CheckpointError(f"sample_size={config['sample_size']} makes more than {MAX_TOKENS} tokens")
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise CheckpointError(f"out_channels={config['out_channels']}: a DiT has in_channels or its double")
    return DiTConfig(
        hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
        num_classes=config["num_embeds_ada_norm"],
        num_hidden_layers=config["num_layers"],
        learn_sigma=config["out_channels"] != config["in_channels"],
        **{name: config[name] for name in ("num_attention_heads", "patch_size", "sample_size", "in_channels")},
        **_numbers(theirs, numbers),
    )


def _numbers(theirs: Mapping[str, Any], given: Mapping[str, float | None]) -> dict[str, Any]:
    """The two numbers that the weights were trained with: as given, as noted, else the original's, which is said."""
    chosen = {name: value for name, value in given.items() if value is not None}
    noted = theirs.get(TRAINED_AS)
    if isinstance(noted, Mapping):
        trained = {name: noted.get(name, value) for name, value in THEIRS.items()}
    elif chosen.get("timestep_freq_shift", 0.0) != 0:
        trained = {**THEIRS, "mlp_norm_eps": theirs.get("norm_eps", THEIRS["mlp_norm_eps"])}
    else:
        trained = ORIGINAL
        if "timestep_freq_shift" not in chosen:
            logger.warning_once(
                "These weights are run as the original trained them, with timestep_freq_shift=0 and mlp_norm_eps=1e-6, "
                "and not as diffusers runs them. For a model that was trained in diffusers pass timestep_freq_shift=1."
            )
    return {**trained, **chosen}


def model_folder(
    source: str | os.PathLike,
    subfolder: str | None,
    variant: str | None,
    use_safetensors: bool | None,
    hub: Mapping[str, Any],
) -> Path:
    """The folder of the model's configuration and weights, downloaded where the source is an id on the Hub.

    Raises:
        CheckpointError: If there is no model.
    """
    inner = [subfolder] if subfolder is not None else ["transformer", ""]
    root = Path(source)
    if not root.is_dir():
        suffixes = ["bin"] if use_safetensors is False else ["safetensors"]
        root = _download(str(source), inner, suffixes, hub)
        if use_safetensors is None and not any(_weight_files(root / part, variant, None) for part in inner):
            root = _download(str(source), inner, ["bin"], hub)
    for part in inner:
        if (root / part / "config.json").is_file():
            return root / part
    raise CheckpointError(f"{source} holds no diffusers model: there is no {inner[0]}/config.json")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: If it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not an object of names and values")
    return content


def _download(repository: str, folders: list[str], suffixes: list[str], hub: Mapping[str, Any]) -> Path:
    names = ["config.json", *(f"{WEIGHTS}*.{suffix}" for suffix in suffixes), f"{WEIGHTS}*.index*.json"]
    patterns = [f"{folder}/{name}".removeprefix("/") for folder in folders for name in names]
    return Path(snapshot_download(repository, allow_patterns=patterns, **hub))


def _weight_files(folder: Path, variant: str | None, use_safetensors: bool | None) -> list[Path]:
    """The files of the weights: of the variant where there is one, safetensors before others, one file or shards."""
    suffixes = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}[use_safetensors]
    for mark in dict.fromkeys([f".{variant}" if variant else "", ""]):
        for suffix in suffixes:
            whole, index = folder / f"{WEIGHTS}{mark}.{suffix}", folder / f"{WEIGHTS}.{suffix}.index{mark}.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                names = read_json(index).get("weight_map")
                if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                    raise CheckpointError(f"{index.name} has no weight_map from keys to names of files")
                return [folder / Path(name).name for name in sorted(set(names.values()))]  # none outside the folder
    return []


def _read_weights(folder: Path, variant: str | None, use_safetensors: bool | None) -> dict[str, StoredTensor]:
    files = _weight_files(folder, variant, use_safetensors)
    if not files:
        kinds = {None: "safetensors or .bin", True: "safetensors", False: ".bin"}[use_safetensors]
        raise CheckpointError(f"{folder.name} has a configuration and no weights in {WEIGHTS} files of {kinds}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder.name} lacks {file.name}, which its index names")
    tensors = {key: value for file in files for key, value in read_checkpoint(file).items()}
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(f"{key} is a {type(value).__name__}: a state dict has tensors by name only")
    return tensors
