"""The settings of a training run: one flat dataclass, from flags, a YAML file, or both."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


@dataclass
class TrainSettings:
    """What a run does; the defaults are the paper's recipe for DiT-XL/2 at 256 px (section 4).

    Paths in a YAML file that begin with `./` or `../` are relative to that file.
    """

    output_dir: str = field(default="out/dit", metadata={"help": "folder of checkpoints, previews and the pipeline"})

    # data
    dataset_name: str = field(default="ILSVRC/imagenet-1k", metadata={"help": "id on the Hub, or a folder"})
    dataset_split: str = "train"
    image_column: str = "image"
    label_column: str = "label"
    class_names_file: str | None = field(
        default=None, metadata={"help": "train on these classes only: their names, one a line"}
    )
    resolution: int = field(default=256, metadata={"help": "side of the images, in pixels"})
    random_flip: bool = True
    num_jitters: int = field(default=0, metadata={"help": "jittered variants of each image (small sets); 0 for none"})
    dataloader_num_workers: int = 0

    # model
    vae_name_or_path: str = "stabilityai/sd-vae-ft-ema"
    cache_latents: int = field(default=0, metadata={"help": "number of images whose latents are kept in memory"})
    model: str = field(default="DiT-XL/2", metadata={"help": "one of the paper's sizes"})
    model_overrides: str = field(
        default="{}", metadata={"help": "fields of DiTConfig that differ, as JSON: '{\"hidden_size\": 256}'"}
    )
    gradient_checkpointing: bool = False

    # objective
    objective: str = field(default="hybrid", metadata={"help": "hybrid, epsilon, v_prediction, sample or flow"})
    beta_schedule: str | None = field(default=None, metadata={"help": "linear (the paper's) unless given"})
    num_train_timesteps: int = 1000

    # optimisation
    train_batch_size: int = field(default=256, metadata={"help": "images of a batch on one process"})
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 400_000
    max_train_minutes: float | None = field(default=None, metadata={"help": "end the training after this time"})
    learning_rate: float = 1e-4
    lr_scheduler: str = field(default="constant", metadata={"help": "a name of transformers' get_scheduler"})
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.0
    max_grad_norm: float | None = None
    ema_decay: float = 0.9999
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    allow_tf32: bool = True
    num_threads: int = field(default=0, metadata={"help": "CPU threads of each process; 0: cores / processes"})
    seed: int = 0

    # what is written
    logging_steps: int = 100
    checkpointing_steps: int = 10_000
    checkpoints_total_limit: int | None = 3
    validation_steps: int = 10_000
    validation_labels: list[int] | None = field(
        default=None, metadata={"help": "of the previews; all up to 16 if not given"}
    )
    validation_inference_steps: int = 50
    guidance_scale: float = 4.0
    report_to: str = field(default="tensorboard", metadata={"help": "trackers of Accelerate, or none"})

    # the Hub; the token is the one of `hf auth login` or HF_TOKEN, never a setting
    push_to_hub: bool = field(default=False, metadata={"help": "push the pipeline at checkpoints and at the end"})
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name; the output folder's name if not given"})
    hub_private_repo: bool = field(default=True, metadata={"help": "whether the repository is private"})
    hub_license: str | None = field(default=None, metadata={"help": "of the weights, as the Hub names it: apache-2.0"})

    def __post_init__(self) -> None:
        for name in (
            "train_batch_size",
            "gradient_accumulation_steps",
            "max_train_steps",
            "logging_steps",
            "resolution",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible: set it to 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} is outside [0, 1): the paper's is 0.9999")


# What may change when a run goes on from a checkpoint: none of these changes what a step computes.
FREE_ON_RESUME = {
    "output_dir",
    "dataloader_num_workers",
    "cache_latents",
    "max_train_minutes",
    "num_threads",
    "logging_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_steps",
    "validation_labels",
    "validation_inference_steps",
    "guidance_scale",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_license",
}


def parse_settings(arguments: Sequence[str]) -> TrainSettings:
    """Read settings from `[FILE.yaml] [--flag value ...]`; flags win over the file.

    Raises:
        ValueError: if the file has an unknown key, with the closest name there is.
    """
    arguments = list(arguments)
    in_file: dict[str, Any] = {}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        in_file = read_yaml(Path(arguments.pop(0)))
    parser = HfArgumentParser(TrainSettings)
    parser.set_defaults(**in_file)
    (settings,) = parser.parse_args_into_dataclasses(arguments)
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, with relative paths resolved.

    Raises:
        ValueError: if a key is not a field of `TrainSettings`.
    """
    values: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    known = [entry.name for entry in dataclasses.fields(TrainSettings)]
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{path} sets {key!r}, which is not a setting" + (f": {close[0]!r} is" if close else ""))
        if isinstance(value, str) and value.startswith(("./", "../")):
            values[key] = str((path.parent / value).resolve())
        if isinstance(value, dict):
            values[key] = json.dumps(value)
    return values


def changed_settings(before: dict[str, Any], now: TrainSettings) -> dict[str, tuple[Any, Any]]:
    """The settings that would change what the steps of a resumed run compute: name -> (before, now)."""
    after = dataclasses.asdict(now)
    names = [name for name in after if name not in FREE_ON_RESUME and name in before]
    return {name: (before[name], after[name]) for name in names if before[name] != after[name]}
