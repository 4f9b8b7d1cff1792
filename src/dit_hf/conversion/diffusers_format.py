"""diffusers' `DiTTransformer2DModel`: other keys for the same tensors, and two numbers that it computes otherwise.

It divides the timestep's frequencies by 127 where the original divides by 128 (`timestep_freq_shift` 1 and 0), and its
second norm has the epsilon 1e-5 where the original has 1e-6 (`mlp_norm_eps`). Weights that were trained by the original
and packaged for diffusers, such as `facebook/DiT-XL-2-256`, are run here as they were trained.
"""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from transformers.utils import logging

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel, position_embedding
from ..weight_files import refuse_adapters
from .assemble import assemble, empty_model, unwrap, unwrap_dit, weights_of
from .designs import check_design
from .deviation import deviation_of
from .diffusers_files import HUB_ARGUMENTS, model_folder, read_json, read_weights
from .diffusers_keys import POSITIONS, to_diffusers_keys, to_our_keys
from .stored import CheckpointError, StoredTensor, stored

logger = logging.get_logger(__name__)

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
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# Private field of the configuration that `to_diffusers` writes; diffusers keeps and ignores it.
TRAINED_AS = "_dit_hf"
# Settings of a pipeline that diffusers' own does not keep, so that the model's configuration does.
KEPT_BY_MODEL = ("guidance_channels", "guidance_scale", "num_inference_steps")
DIFFUSERS_NUMBERS = {"timestep_freq_shift": 1.0, "mlp_norm_eps": 1e-5}
ORIGINAL_NUMBERS = {"timestep_freq_shift": 0.0, "mlp_norm_eps": 1e-6}


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
        source: Model of diffusers, which may be compiled or wrapped otherwise; its folder or that of its pipeline, or
            an id on the Hub.
        timestep_freq_shift: 0 for weights trained by the original, 1 for weights trained in diffusers. None takes what
            `to_diffusers` wrote down; without that it takes 0, and a warning says so once.
        mlp_norm_eps: Epsilon of the second norm. None takes the original's if the shift is 0, else the source's.
        subfolder: Place of the model in a folder or repository; None looks for `transformer`.
        variant: Variant of the weights that is preferred, such as "fp16".
        use_safetensors: True refuses other files, False takes `.bin` files, None prefers safetensors.
        **hub: `cache_dir`, `force_download`, `local_files_only`, `revision` and `token` of `huggingface_hub`.

    Raises:
        CheckpointError: If the weights are damaged, of another model, or if the copies in the blocks disagree.
        ValueError: If an argument is unknown, or if the source is a model of another class.
    """
    unknown = set(hub) - set(HUB_ARGUMENTS)
    if unknown:
        raise ValueError(f"unknown argument {min(unknown)!r}: beside its own there are {', '.join(HUB_ARGUMENTS)}")
    tensors: Mapping[str, StoredTensor]
    if isinstance(source, nn.Module):
        model: Any = unwrap(source)
        if not isinstance(model, DiTTransformer2DModel):
            raise ValueError(f"{type(model).__name__} is not a DiTTransformer2DModel of diffusers")
        fields = dict(model.config)
        tensors = {key: stored(tensor) for key, tensor in weights_of(model).items()}
    else:
        folder = model_folder(source, subfolder, variant, use_safetensors, hub)
        fields = read_json(folder / "config.json")
        tensors = read_weights(folder, variant, use_safetensors)
    asked = {"timestep_freq_shift": timestep_freq_shift, "mlp_norm_eps": mlp_norm_eps}
    config = _our_config(fields, tensors, asked)
    return assemble(config, _our_tensors(config, tensors))


def to_diffusers(model: DiTModel) -> DiTTransformer2DModel:
    """Build diffusers' model with these weights, copied once for each block that diffusers gives its own embedders.

    A warning says how far the output of that model is from this model's, if diffusers' fixed frequencies differ.

    Args:
        model: Model with adaLN-Zero blocks, a square `sample_size`, `mlp_ratio` 4, classes and a null class.

    Raises:
        ValueError: If diffusers cannot express the model; the message names the field. Also if an adapter is loaded.
    """
    model = unwrap_dit(model)
    refuse_adapters(model, "converting")
    config = model.config
    _check_expressible(config)
    with init_empty_weights():  # its position embedding is a buffer, and is computed
        converted = DiTTransformer2DModel(
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
    converted.register_to_config(**{TRAINED_AS: {name: getattr(config, name) for name in DIFFUSERS_NUMBERS}})
    converted.load_state_dict(to_diffusers_keys(weights_of(model), config.num_hidden_layers), assign=True)
    converted.pos_embed.pos_embed = converted.pos_embed.pos_embed.to(model.device)
    _warn_of_deviation(model, converted.pos_embed.pos_embed)
    return converted.eval()


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
    check_design(config, "diffusers' DiT")
    fields = {
        "sample_size": (isinstance(config.sample_size, int), "a square"),
        "mlp_ratio": (config.mlp_ratio == 4, "4"),
        "num_classes": (config.num_classes > 0, "at least 1"),
        "class_dropout_prob": (config.class_dropout_prob > 0, "more than 0, for the null class"),
    }
    for name, (is_expressible, limit) in fields.items():
        if not is_expressible:
            raise ValueError(f"{name}={getattr(config, name)!r}: diffusers' DiT has {limit} only")


def _our_tensors(config: DiTConfig, theirs: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    expected = dict(empty_model(config).named_parameters())
    tensors = to_our_keys(theirs, expected, config.num_hidden_layers)
    dtype = tensors["x_embedder.proj.weight"].dtype

    def positions() -> Tensor:
        return position_embedding(config.grid_height_width, config.hidden_size).to(dtype)

    return {**tensors, POSITIONS: StoredTensor(tuple(expected[POSITIONS].shape), dtype, positions)}


def _our_config(
    fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor], asked: Mapping[str, float | None]
) -> DiTConfig:
    if fields.get("_class_name", CLASSES[0]) not in CLASSES:
        raise CheckpointError(f"its configuration is of {fields['_class_name']}: a DiT is of {' or '.join(CLASSES)}")
    for name, value in FIXED.items():
        if fields.get(name, value) != value:
            raise CheckpointError(f"its configuration has {name}={fields[name]!r}: a DiT has {value!r}")
    defaults = {name: field.default for name, field in inspect.signature(DiTTransformer2DModel).parameters.items()}
    config = {name: fields.get(name, default) for name, default in defaults.items()}
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
        **_numbers_of_training(fields, asked),
    )


def _numbers_of_training(fields: Mapping[str, Any], asked: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the two numbers that the weights were trained with.

    They are what the caller asks for, else what `to_diffusers` wrote down, else the original's, with a warning.
    """
    chosen = {name: value for name, value in asked.items() if value is not None}
    written = fields.get(TRAINED_AS)
    if isinstance(written, Mapping):
        trained = {name: written.get(name, value) for name, value in DIFFUSERS_NUMBERS.items()}
    elif chosen.get("timestep_freq_shift", 0.0) != 0:
        trained = {**DIFFUSERS_NUMBERS, "mlp_norm_eps": fields.get("norm_eps", DIFFUSERS_NUMBERS["mlp_norm_eps"])}
    else:
        trained = ORIGINAL_NUMBERS
        if "timestep_freq_shift" not in chosen:
            logger.warning_once(
                "These weights are run as the original trained them, with timestep_freq_shift=0 and mlp_norm_eps=1e-6, "
                "and not as diffusers runs them. For a model that was trained in diffusers pass timestep_freq_shift=1."
            )
    return {**trained, **chosen}
