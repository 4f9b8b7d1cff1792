"""The settings of a training run: one flat dataclass, from flags, a YAML file, or both."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainSettings:
    """What a run does; the defaults are the paper's recipe for DiT-XL/2 at 256 px (section 4).

    Paths in a YAML file that begin with `./` or `../` are relative to that file.
    """

    output_dir: str = _setting("out/dit", "folder of checkpoints, previews and the finished pipeline")

    # data
    dataset_name: str = _setting("ILSVRC/imagenet-1k", "id on the Hub, a folder, or files: 'shards/*.tar'")
    dataset_config_name: str | None = _setting(None, "configuration of a data set that has several")
    dataset_revision: str | None = _setting(None, "branch, tag or commit on the Hub; a run keeps the commit it found")
    dataset_split: str = _setting("train", "split of the data set")
    image_column: str = _setting("image", "column of images")
    label_column: str = _setting("label", "column of class labels")
    class_names_file: str | None = _setting(None, "train on these classes only: their names, one a line")
    label_map_file: str | None = _setting(None, 'JSON, {"name in the data set": "name here"}; others are left out')
    max_bad_images: float = _setting(0.001, "share of images that may be skipped as they cannot be decoded")
    resolution: int = _setting(256, "side of the images, in pixels")
    random_flip: bool = _setting(True, "mirror half of the images, drawn anew each epoch")
    num_jitters: int = _setting(0, "turned, scaled and shifted variants of each image, for small sets; 0 for none")
    dataloader_num_workers: int = _setting(4, "processes that prepare images, beside each training process")

    # model
    vae_name_or_path: str = _setting("stabilityai/sd-vae-ft-ema", "an AutoencoderKL: id on the Hub, or a folder")
    cache_latents: int = _setting(0, "number of images whose latents are kept in memory")
    model: str = _setting("DiT-XL/2", "one of the paper's sizes")
    model_overrides: str = _setting("{}", "fields of DiTConfig that differ, as JSON: '{\"hidden_size\": 256}'")
    gradient_checkpointing: bool = _setting(False, "compute activations twice instead of keeping them")

    # fine-tuning
    init_from: str | None = _setting(None, "start from this model: a pipeline's folder or id, or an original .pt")
    keep_classes: bool = _setting(False, "keep the classes of init_from beside those of the data")
    position_embedding: Literal["extend", "interpolate"] = _setting("extend", "at another resolution than init_from's")
    last_blocks: int | None = _setting(None, "train that many last blocks, final layer and labels; freeze the rest")
    lora_rank: int | None = _setting(None, "train a LoRA adapter of this rank and the labels; freeze the rest")
    lora_alpha: float | None = _setting(None, "scale of the adapter times its rank; the rank unless given")

    # objective
    objective: str = _setting("hybrid", "hybrid, epsilon, v_prediction, sample or flow")
    beta_schedule: str | None = _setting(None, "linear (the paper's) unless given; squaredcos_cap_v2, scaled_linear")
    beta_start: float = _setting(1e-4, "the first beta of the linear schedules")
    beta_end: float = _setting(0.02, "the last beta of the linear schedules")
    num_train_timesteps: int = _setting(1000, "steps T of the diffusion")

    # optimisation
    train_batch_size: int = _setting(256, "images of a batch on one process")
    gradient_accumulation_steps: int = _setting(1, "batches that make one step")
    max_train_steps: int = _setting(400_000, "steps of the whole training")
    max_train_minutes: float | None = _setting(None, "end after this time, counted from each start")
    learning_rate: float = _setting(1e-4, "of AdamW")
    lr_scheduler: str = _setting("constant", "a name of diffusers' get_scheduler, such as cosine")
    lr_warmup_steps: int = _setting(0, "steps in which the learning rate rises from 0")
    adam_beta1: float = _setting(0.9, "decay of AdamW's first moment")
    adam_beta2: float = _setting(0.999, "decay of AdamW's second moment")
    adam_weight_decay: float = _setting(0.0, "of AdamW")
    max_grad_norm: float | None = _setting(None, "clip gradients to this norm; no clipping unless given")
    ema_decay: float = _setting(0.9999, "weight of the old average at each step")
    extra_ema_decays: list[float] | None = _setting(None, "of more averages, which checkpoints hold beside the first")
    max_skipped_steps: int = _setting(10, "steps in a row whose loss or gradient is not finite, before the run ends")
    mixed_precision: str | None = _setting(None, "no, bf16 or fp16; what the launcher says unless given")
    torch_compile: bool = _setting(False, "compile the blocks of the model, each of which has the same graph")
    allow_tf32: bool = _setting(True, "TF32 in float32 products on NVIDIA GPUs")
    num_threads: int = _setting(0, "CPU threads of each process; 0: cores / processes")
    seed: int = _setting(0, "of the weights, the order, and every draw of a sample")

    # what is written
    logging_steps: int = _setting(100, "steps between rows of metrics.jsonl")
    checkpointing_steps: int = _setting(10_000, "steps between checkpoints")
    checkpoints_total_limit: int | None = _setting(3, "number of checkpoints kept; all if 'null' in a file")
    checkpoints_milestone_steps: int | None = _setting(None, "checkpoints at multiples of it are kept for ever")
    stop_on_failed_checkpoint: bool = _setting(False, "end the run when a checkpoint cannot be written")
    resume_from_checkpoint: str = _setting("latest", "the newest that is whole; or a step, or a checkpoint's folder")
    allow_config_change: bool = _setting(False, "go on from a checkpoint although settings would change its steps")
    validation_steps: int = _setting(10_000, "steps between previews")
    validation_distance: str | None = _setting(None, "module:function of a list of images; the lowest is kept as best")
    validation_labels: list[int] | None = _setting(None, "of the previews; all up to 16 unless given")
    validation_inference_steps: int = _setting(50, "scheduler steps of the previews")
    guidance_scale: float = _setting(4.0, "of the previews; 1 for none")
    report_to: str = _setting("tensorboard", "tensorboard, wandb, trackio, another tracker of Accelerate, or none")

    # the Hub; the token is the one of `hf auth login` or HF_TOKEN, never a setting
    push_to_hub: bool = _setting(False, "push the pipeline at checkpoints and at the end")
    hub_model_id: str | None = _setting(None, "user/name; output_dir's name unless given")
    hub_private_repo: bool = _setting(True, "whether the repository is private")
    hub_license: str | None = _setting(None, "of the weights, as the Hub names it: apache-2.0")

    def __post_init__(self) -> None:
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            kinds, kind = (int, "a whole number") if isinstance(lowest, int) else ((int, float), "a number")
            fits = isinstance(value, kinds) and not isinstance(value, bool) and value >= lowest
            if value is not None and not fits:
                raise ValueError(f"{name}={value!r} is not possible: set it to {kind} of at least {lowest}")
        for name, needed in NEEDS.items():
            if getattr(self, name) != getattr(type(self), name) and getattr(self, needed) is None:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect without {needed}: set that too")
        if self.position_embedding not in ("extend", "interpolate"):
            raise ValueError(f"position_embedding={self.position_embedding!r}: choose extend or interpolate")
        if self.last_blocks is not None and self.lora_rank is not None:
            raise ValueError("last_blocks and lora_rank each say what is trained: set one of them")
        for decay in self.ema_decays:
            if not 0 <= decay < 1:
                raise ValueError(f"ema_decay={decay} is outside [0, 1): the paper's is 0.9999")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"extra_ema_decays={self.extra_ema_decays} names a decay twice: leave one of them out")

    @property
    def ema_decays(self) -> list[float]:
        """All decays, the pipeline's first."""
        return [self.ema_decay, *(self.extra_ema_decays or [])]


LOWEST: dict[str, float] = {
    "resolution": 1,
    "num_jitters": 0,
    "max_bad_images": 0.0,
    "dataloader_num_workers": 0,
    "cache_latents": 0,
    "last_blocks": 0,
    "lora_rank": 1,
    "lora_alpha": 0.0,
    "num_train_timesteps": 2,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 1,
    "max_train_minutes": 0.001,
    "learning_rate": 0.0,
    "lr_warmup_steps": 0,
    "adam_weight_decay": 0.0,
    "max_grad_norm": 1e-6,
    "max_skipped_steps": 1,
    "ema_decay": 0.0,
    "num_threads": 0,
    "seed": 0,
    "logging_steps": 1,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 1,
    "checkpoints_milestone_steps": 1,
    "validation_steps": 1,
    "validation_inference_steps": 1,
    "guidance_scale": 0.0,
}

# Settings that mean nothing without another one.
NEEDS = dict.fromkeys(("keep_classes", "position_embedding", "last_blocks", "lora_rank"), "init_from")
NEEDS["lora_alpha"] = "lora_rank"

# What may change when a run goes on from a checkpoint: none of these changes what a step computes.
FREE_ON_RESUME = {
    "output_dir",
    "dataloader_num_workers",
    "max_bad_images",
    "cache_latents",
    "max_train_minutes",
    "max_skipped_steps",
    "num_threads",
    "logging_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "checkpoints_milestone_steps",
    "stop_on_failed_checkpoint",
    "resume_from_checkpoint",
    "allow_config_change",
    "validation_steps",
    "validation_distance",
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
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}: write lines of the form `setting: value`")
    known = [entry.name for entry in dataclasses.fields(TrainSettings)]
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{path} sets {key!r}, which is not a setting" + (f": {close[0]!r} is" if close else ""))
        if isinstance(value, str) and value.startswith(("./", "../")):
            values[key] = str((path.parent / value).resolve())
        if isinstance(value, dict):
            values[key] = json.dumps(value)
        if key in ("extra_ema_decays", "validation_labels") and not isinstance(value, list | None):
            raise ValueError(f"{path} sets {key} to {value!r}: write a list, such as [{value}]")
    if values.get("mixed_precision") is False:  # an unquoted "no" of YAML
        values["mixed_precision"] = "no"
    return values


def changed_settings(
    before: dict[str, Any], now: TrainSettings, world_size_before: int = 1, world_size: int = 1
) -> dict[str, tuple[Any, Any]]:
    """The settings that would change what the steps of a resumed run compute: name -> (before, now).

    A step takes the same images however they are divided over processes and accumulated batches, so of these only the
    product counts.
    """
    after = dataclasses.asdict(now)
    free = FREE_ON_RESUME | DIVISION | ({"max_train_steps"} if now.lr_scheduler.startswith("constant") else set())
    names = [name for name in after if name not in free and name in before]
    changes = {name: (before[name], after[name]) for name in names if before[name] != after[name]}
    images_before = images_a_step(before, world_size_before)
    if (images := images_a_step(after, world_size)) != images_before:
        changes["images a step"] = (images_before, images)
    return changes


DIVISION = {"train_batch_size", "gradient_accumulation_steps"}


def images_a_step(settings: dict[str, Any], world_size: int) -> int:
    """Images of one optimiser step, over all processes."""
    return settings["train_batch_size"] * settings["gradient_accumulation_steps"] * world_size
