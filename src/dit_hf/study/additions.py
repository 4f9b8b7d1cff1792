"""The additions of a recipe: settings beyond the paper's, by name, each of which goes to the part that knows it.

An addition is a field of `DiTConfig`, or a setting of a training that changes its steps: a setting of the objective, of
the optimiser or of a technique. The tables of the package are searched, so a switch that one of them gains is an
addition at once, under the name that `dit-hf train` gives it. Example:

    additions: {qk_norm: true, optimizer: muon, muon_learning_rate: 0.02, min_snr_gamma: 5}
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..configuration_dit import DIT_FIELDS
from ..training.setting_row import rows
from ..training.settings import TrainSettings, all_rows
from ..training.techniques import TECHNIQUES

# Decided by the size of a model, the data, or fields of the recipe.
DECIDED_ELSEWHERE = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "sample_size", "in_channels",
    "num_classes", "learn_sigma", "block_type", "model", "objective", "train_batch_size", "max_train_steps",
    "learning_rate", "lr_warmup_steps", "ema_decay", "seed",
}  # fmt: skip

# Settings of a training that change its steps, but not those of a study: it has its own data, and starts from nothing.
NOT_IN_A_STUDY = {
    "dataset_name", "dataset_config_name", "dataset_revision", "dataset_split", "image_column", "label_column",
    "class_names_file", "label_map_file", "resolution", "random_flip", "num_jitters", "vae_name_or_path",
    "model_overrides", "gradient_checkpointing", "init_from", "keep_classes", "resize_position_embedding",
    "last_blocks", "lora_rank", "lora_alpha",
    "gradient_accumulation_steps", "extra_ema_decays", "mixed_precision", "allow_tf32",
}  # fmt: skip


def possible_additions() -> set[str]:
    """Return the names of all additions."""
    of_steps = {name for name, rules in all_rows().items() if rules.may_change != "always"}
    return {*DIT_FIELDS, *(of_steps - NOT_IN_A_STUDY)} - DECIDED_ELSEWHERE


def check_additions(given: Mapping[str, Any]) -> None:
    """Check that additions exist.

    Args:
        given: Values by name.

    Raises:
        ValueError: If a name is unknown, or decided by the model's size or another field of the recipe.
    """
    possible = possible_additions()
    for name in given:
        if name in DECIDED_ELSEWHERE:
            raise ValueError(f"additions set {name}, which the model's size or another field of the recipe decides")
        if name not in possible:
            raise ValueError(f"additions set {name}, which is none of {', '.join(sorted(possible))}")


def model_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the additions that are fields of `DiTConfig`."""
    return {name: value for name, value in given.items() if name in DIT_FIELDS}


def training_settings(given: Mapping[str, Any], **fields: Any) -> TrainSettings:
    """Return the settings of a training with additions.

    Args:
        given: All additions.
        **fields: Settings that the recipe decides.

    Raises:
        ValueError: If a value is not possible, or an addition has no effect without another.
    """
    own = dict(given)
    techniques = {
        technique: each.Settings(**{name: own.pop(name) for name in rows(each.Settings) if name in own})
        for technique, each in TECHNIQUES.items()
    }
    return TrainSettings(**{**fields, **own}, techniques=techniques)


def describe(given: Mapping[str, Any]) -> str:
    """Return additions as a text in the order of their names, such as ", min_snr_gamma 5, qk_norm True"."""
    return "".join(f", {name} {value}" for name, value in sorted(given.items()))


def read_numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn texts that are numbers into numbers: 6e-3 is a text in YAML."""
    values = dict(given)
    for name, value in values.items():
        if isinstance(value, str):
            with suppress(ValueError):
                values[name] = float(value)
    return values
