"""The fields of `DiTConfig` as settings of a training, each None unless the user sets it.

What a training finds out itself has no setting: `sample_size` follows from the resolution and the VAE, `in_channels`
from the VAE, `learn_sigma` from the objective, `rope_scale` from the policy of another resolution.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ...configuration_dit import BlockType, FeedForward, NormType, PositionEmbedding
from ..setting_row import row, rows

DECIDED = {
    "sample_size": "resolution",
    "in_channels": "vae_name_or_path",
    "learn_sigma": "objective",
    "rope_scale": "resize_position_embedding",
}
POLICIES = ("extend", "interpolate")  # of `resize_position_embedding`, which was called position_embedding


@dataclass
class ModelFields:
    """The settings of the architecture. None leaves a field to the model's size, or to the model of `init_from`."""

    hidden_size: int | None = row(None, "Width of a token. Default: that of the model's size.", at_least=1)
    num_hidden_layers: int | None = row(None, "Number of blocks. Default: that of the model's size.", at_least=1)
    num_attention_heads: int | None = row(
        None, "Number of heads of each attention. Default: that of the model's size.", at_least=1
    )
    patch_size: int | None = row(
        None, "Side of a patch in latent pixels. Default: that of the model's size.", at_least=1
    )
    num_classes: int | None = row(
        None, "Number of classes, 0 for an unconditional model. Default: that of the data.", at_least=0
    )
    class_dropout_prob: float | None = row(
        None,
        "Share of labels that training replaces by the null class, which guidance needs. Default: 0.1.",
        at_least=0.0,
    )
    mlp_ratio: float | None = row(None, "Ratio of the feed-forward's width to hidden_size. Default: 4.", at_least=1e-3)
    block_type: BlockType | None = row(None, "Block design, by which timestep and label enter. Default: adaln_zero.")
    timestep_freq_shift: float | None = row(
        None,
        "Shift in the timestep's frequencies, 0 as in the original or 1 as in diffusers. Default: 0.",
        at_least=0.0,
    )
    timestep_scale: float | None = row(
        None, "Factor of the timestep before its embedding. SiT has -0.001, with timestep_offset 1. Default: 1."
    )
    timestep_offset: float | None = row(None, "Number that is added to the scaled timestep. Default: 0.")
    mlp_norm_eps: float | None = row(None, "Epsilon of the norm before each feed-forward. Default: 1e-6.", at_least=0.0)
    qk_norm: bool | None = row(None, "Whether attentions normalise queries and keys, head by head. Default: False.")
    position_embedding: str | None = row(
        None,
        "Way in which positions enter: sincos adds the paper's sines and cosines to the tokens, rope turns queries and "
        "keys, both does both. Default: sincos.",
    )
    rope_theta: float | None = row(None, "Base of the angles of rope and both. Default: 100.", at_least=1.0)
    mlp: FeedForward | None = row(
        None, "Feed-forward: gelu is the paper's, swiglu a gated one of as many parameters. Default: gelu."
    )
    norm: NormType | None = row(None, "Norm of tokens: LayerNorm, or one by the root mean square. Default: layer.")
    value_residual: bool | None = row(
        None, "Whether each self-attention mixes the first block's values into its own. Default: False."
    )
    model_overrides: str = row(
        "{}", "Fields of DiTConfig as JSON: '{\"hidden_size\": 256}'. Each field is a setting of its own as well."
    )

    def check_model_fields(self) -> None:
        """Check what a row does not say.

        Raises:
            ValueError: If the position embedding is unknown, or as in `config_overrides`.
        """
        value, choices = self.position_embedding, get_args(PositionEmbedding)
        if value in POLICIES:
            raise ValueError(
                f"position_embedding={value!r} is now called resize_position_embedding={value!r}: set that, as "
                f"position_embedding is one of {', '.join(choices)}"
            )
        if value not in (None, *choices):
            raise ValueError(f"position_embedding={value!r} is not possible: set it to one of {', '.join(choices)}")
        _ = self.config_overrides

    @property
    def config_overrides(self) -> dict[str, Any]:
        """Fields of `DiTConfig` that the settings give.

        Raises:
            ValueError: If `model_overrides` is no JSON object, or contradicts a setting.
        """
        try:
            overrides = json.loads(self.model_overrides)
        except json.JSONDecodeError as error:
            raise ValueError(f"model_overrides={self.model_overrides!r} is no JSON object: {error}") from error
        if not isinstance(overrides, dict):
            raise ValueError(f"model_overrides={self.model_overrides!r} is no JSON object: pass names and values")
        given = {name: getattr(self, name) for name in rows(ModelFields) if name != "model_overrides"}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given.keys() & overrides.keys():
            if given[name] != overrides[name]:
                raise ValueError(
                    f"{name}={given[name]!r} contradicts model_overrides, which has {overrides[name]!r}: leave one out"
                )
        return {**overrides, **given}


def in_one_form(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings as today's name them, with the fields of `model_overrides` as settings of their own."""
    overrides = json.loads(settings.get("model_overrides", "{}"))
    moved = {name: overrides.pop(name) for name in rows(ModelFields).keys() & overrides.keys()}
    stored = {**settings, **moved, "model_overrides": json.dumps(overrides)}
    if settings.get("position_embedding") in POLICIES:
        stored["resize_position_embedding"] = stored.pop("position_embedding")
    return stored
