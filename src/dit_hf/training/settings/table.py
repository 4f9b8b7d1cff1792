"""The settings of a training: one table, one row each."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffusers.optimization import SchedulerType

from ...diffusion import BETA_SCHEDULES, OBJECTIVES, Schedule, TimestepDensity
from ..setting_row import Row, check, row, rows
from ..techniques import TECHNIQUES
from .model_fields import ModelFields

# diffusers' get_scheduler takes the steps of "piecewise_constant" from an argument that no setting gives.
LR_SCHEDULERS = [each.value for each in SchedulerType if each is not SchedulerType.PIECEWISE_CONSTANT]


def _all_off() -> dict[str, Any]:
    return {name: technique.Settings() for name, technique in TECHNIQUES.items()}


@dataclass
class TrainSettings(ModelFields):
    """The settings of a training; the defaults are the paper's recipe for DiT-XL/2 at 256 px (section 4).

    Paths in a YAML file that begin with `./` or `../` are relative to that file.
    """

    output_dir: str = row("out/dit", "Folder of checkpoints, previews and the finished pipeline.", may_change="always")

    # data
    dataset_name: str = row("ILSVRC/imagenet-1k", "Data set: an id on the Hub, a folder, or files: 'shards/*.tar'.")
    dataset_config_name: str | None = row(None, "Configuration of a data set that has several.")
    dataset_revision: str | None = row(
        None, "Branch, tag or commit of the data set on the Hub. A run keeps the commit that it started with."
    )
    dataset_split: str = row("train", "Split of the data set.")
    image_column: str = row("image", "Column of images.")
    label_column: str = row("label", "Column of class labels.")
    class_names_file: str | None = row(None, "File with the names of the classes to train on, one per line.")
    label_map_file: str | None = row(
        None, 'JSON file that maps names of the data set to new ones: {"name": "new name"}; others are left out.'
    )
    max_bad_images: float = row(
        0.001,
        "Share of images that may be skipped because they cannot be decoded. Unless it is 0, one may be skipped in any "
        "case, and up to 10 if they are at most a tenth of the images.",
        at_least=0.0,
        may_change="always",
    )
    resolution: int = row(
        256,
        "Side of the images in pixels.",
        at_least=1,
        from_origin=True,
        card="resolution",
    )
    random_flip: bool = row(
        True, "Whether to mirror half of the images, drawn anew each epoch.", card="horizontal flips"
    )
    num_jitters: int = row(
        0,
        "Number of turned, scaled and shifted variants of each image, for small data sets; 0 for the image alone.",
        at_least=0,
        card="jittered variants of each image",
    )
    dataloader_num_workers: int | None = row(
        None,
        "Number of processes that prepare images, beside each training process. Default: as fits the machine, up to 4.",
        at_least=0,
        may_change="always",
    )

    # model
    vae_name_or_path: str = row(
        "stabilityai/sd-vae-ft-ema",
        "AutoencoderKL: an id on the Hub, or a folder.",
        from_origin=True,
    )
    cache_latents: int = row(0, "Number of images whose latents are kept in memory.", at_least=0, may_change="always")
    model: str = row("DiT-XL/2", "Size of the model, one of the paper's.", from_origin=True)
    gradient_checkpointing: bool = row(
        False, "Whether to compute activations twice instead of keeping them, which saves memory."
    )

    # fine-tuning
    init_from: str | None = row(None, "Model to start from: a pipeline's folder or id, or an original .pt file.")
    keep_classes: bool = row(
        False, "Whether to keep the classes of init_from beside those of the data.", needs="init_from"
    )
    resize_position_embedding: Literal["extend", "interpolate"] = row(
        "extend",
        "Placement of the patches if the resolution differs from that of init_from: extend keeps each patch's size and "
        "continues the grid, interpolate stretches the trained grid over the image.",
        needs="init_from",
    )
    last_blocks: int | None = row(
        None,
        "Number of last blocks to train, with the final layer and the labels; the other blocks are frozen.",
        at_least=0,
        needs="init_from",
    )
    lora_rank: int | None = row(
        None,
        "Rank of a LoRA adapter to train, with the labels; the model itself is frozen.",
        at_least=1,
        needs="init_from",
    )
    lora_alpha: float | None = row(
        None,
        "LoRA's alpha. The adapter's output is multiplied by lora_alpha / lora_rank. Default: lora_rank.",
        at_least=0.0,
        needs="lora_rank",
    )

    # objective
    objective: str = row(
        "hybrid",
        f"Objective: {', '.join(OBJECTIVES)}; hybrid is the paper's.",
        from_origin=True,
        card="objective",
    )
    beta_schedule: str | None = row(
        None,
        f"Noise schedule: {', '.join(BETA_SCHEDULES)}. Default: that of init_from, or the paper's linear one.",
        card="noise schedule",
        from_origin=True,
    )
    beta_start: float = row(
        1e-4,
        "First beta of the linear schedules.",
        at_least=0.0,
        below=1.0,
        from_origin=True,
    )
    beta_end: float = row(
        0.02,
        "Last beta of the linear schedules.",
        at_least=0.0,
        below=1.0,
        from_origin=True,
    )
    num_train_timesteps: int = row(
        1000,
        "Number of timesteps of the diffusion.",
        at_least=2,
        from_origin=True,
        card="timesteps",
    )
    timestep_density: Literal["uniform", "logit_normal"] | None = row(
        None,
        "Density of the timesteps that are drawn: uniform, or logit_normal for sigmoid(z) of a normal z, of the share "
        "of noise in flow matching, else of t / num_train_timesteps. Default: that of the objective, which is uniform "
        "but for flow_sample, whose z has mean 0.8 and deviation 0.8.",
        card="density of timesteps",
    )
    logit_normal_mean: float = row(
        0.0,
        "Mean of z in the density logit_normal. Above 0, most timesteps are noisy; diffusers' scripts have the other "
        "sign.",
        needs="timestep_density",
        idle=(None, "uniform"),
        card="mean of the density",
    )
    logit_normal_std: float = row(
        1.0,
        "Standard deviation of z in the density logit_normal.",
        at_least=1e-3,
        needs="timestep_density",
        idle=(None, "uniform"),
        card="standard deviation of the density",
    )
    timestep_shift: float = row(
        1.0,
        "Shift s of the timesteps that are drawn, to s t / (1 + (s - 1) t); above 1 towards noise. The scheduler of a "
        "pipeline that is trained by flow matching gets it too.",
        at_least=1e-3,
        from_origin=True,
        card="shift of timesteps",
    )

    # optimisation
    train_batch_size: int = row(
        256,
        "Number of images of a batch on one process.",
        at_least=1,
        may_change="with equal images per step",
        card="images of a batch on one process",
    )
    gradient_accumulation_steps: int = row(
        1,
        "Number of batches whose gradients make one optimiser step.",
        at_least=1,
        may_change="with equal images per step",
        card="batches of a step",
    )
    max_train_steps: int = row(
        400_000,
        "Number of steps of the whole training.",
        at_least=1,
        may_change="with a constant learning rate",
    )
    max_train_minutes: float | None = row(
        None, "Minutes after which the training ends, counted from each start.", at_least=0.001, may_change="always"
    )
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = row(
        "adamw",
        "Optimiser: adamw, the paper's; adamw_8bit, whose moments take a quarter of the memory (needs torchao); or "
        "muon: the matrices of attention and feed-forward in the blocks by Muon, everything else by AdamW.",
        card="optimiser",
    )
    learning_rate: float = row(1e-4, "Learning rate of AdamW.", at_least=0.0, card="learning rate")
    muon_learning_rate: float = row(
        0.006,
        "Learning rate of Muon. A step is as large as one of AdamW at this rate.",
        at_least=0.0,
        needs="optimizer",
        idle=("adamw", "adamw_8bit"),
        card="learning rate of Muon",
    )
    lr_scheduler: str = row("constant", f"Schedule of the rate: {', '.join(LR_SCHEDULERS)}.", card="schedule of rates")
    lr_warmup_steps: int = row(
        0,
        "Number of steps in which the learning rates rise from 0.",
        at_least=0,
        needs="lr_scheduler",
        idle=("constant",),
        card="warm-up steps",
    )
    adam_beta1: float = row(0.9, "Decay of AdamW's first moment.", at_least=0.0, below=1.0, card="AdamW's beta 1")
    adam_beta2: float = row(0.999, "Decay of AdamW's second moment.", at_least=0.0, below=1.0, card="AdamW's beta 2")
    adam_weight_decay: float = row(0.0, "Weight decay. The paper uses 0.", at_least=0.0, card="weight decay")
    max_grad_norm: float | None = row(
        None,
        "Norm to which gradients are clipped. Default: no clipping, as in the paper.",
        at_least=1e-6,
        card="norm to which gradients are clipped",
    )
    ema_decay: float = row(
        0.9999,
        "Decay of the exponential moving average (EMA) of the weights, which becomes the pipeline's model.",
        at_least=0.0,
        below=1.0,
        card="decay of the exponential moving average (EMA), whose weights these are",
    )
    extra_ema_decays: list[float] | None = row(
        None, "Decays of further averages, which checkpoints hold beside the first."
    )
    max_skipped_steps: int = row(
        10,
        "Number of steps in a row whose loss or gradient is not finite, after which the training ends.",
        at_least=1,
        may_change="always",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = row(
        None, "Mixed precision. Default: the launcher's.", card="mixed precision"
    )
    torch_compile: bool = row(False, "Whether to compile the blocks of the model.")
    allow_tf32: bool = row(True, "Whether float32 products use TF32 on NVIDIA GPUs.")
    num_threads: int = row(
        0, "Number of CPU threads of each process; 0 for cores / processes.", at_least=0, may_change="always"
    )
    seed: int = row(
        0,
        "Seed of the fresh weights, of the order of images, and of every random number of a sample.",
        at_least=0,
        card="seed",
    )

    # what is written
    logging_steps: int = row(100, "Number of steps between rows of metrics.jsonl.", at_least=1, may_change="always")
    checkpointing_steps: int = row(10_000, "Number of steps between checkpoints.", at_least=1, may_change="always")
    checkpoints_total_limit: int | None = row(
        3, "Number of newest checkpoints to keep; null in a file keeps all.", at_least=1, may_change="always"
    )
    checkpoints_milestone_steps: int | None = row(
        None,
        "Multiple of checkpointing_steps; a checkpoint at each multiple of this number is never deleted.",
        at_least=1,
        needs="checkpoints_total_limit",
        may_change="always",
    )
    stop_on_failed_checkpoint: bool = row(
        False, "Whether the training ends if a checkpoint cannot be written.", may_change="always"
    )
    resume_from_checkpoint: str = row(
        "latest",
        "Checkpoint to resume from: latest for the newest undamaged one, a step, or a checkpoint's folder.",
        may_change="always",
    )
    allow_config_change: bool = row(
        False, "Whether a training may resume although settings that change its steps differ.", may_change="always"
    )
    validation_steps: int = row(10_000, "Number of steps between previews.", at_least=1, may_change="always")
    validation_distance: str | None = row(
        None,
        "Function `module:function` that measures a list of images; the checkpoint of the lowest value is kept.",
        may_change="always",
    )
    validation_labels: list[int] | None = row(
        None, "Classes of the previews, by number. Default: the first 16 of those in the data.", may_change="always"
    )
    validation_inference_steps: int = row(
        50, "Number of scheduler steps of the previews.", at_least=1, may_change="always"
    )
    guidance_scale: float = row(
        4.0, "Guidance of previews, and of the pipeline unless 4; 1 for none.", at_least=0.0, may_change="always"
    )
    report_to: str = row(
        "tensorboard",
        "Tracker: tensorboard, wandb, trackio, another one that Accelerate knows, or none.",
        may_change="always",
    )

    # the Hub; the token is the one of `hf auth login` or HF_TOKEN, never a setting
    push_to_hub: bool = row(
        False, "Whether to push the pipeline to the Hub at checkpoints and at the end.", may_change="always"
    )
    hub_model_id: str | None = row(
        None,
        "Repository to push to, user/name. Default: the name of output_dir.",
        needs="push_to_hub",
        may_change="always",
    )
    hub_private_repo: bool = row(True, "Whether the repository is private.", needs="push_to_hub", may_change="always")
    hub_license: str | None = row(
        None, "Licence of the weights as the Hub names it, such as apache-2.0.", may_change="always"
    )

    # Settings of each technique, by its name in TECHNIQUES; not a flag itself
    techniques: dict[str, Any] = dataclasses.field(default_factory=_all_off)

    def __post_init__(self) -> None:
        self._check()
        if self.init_from is None:
            self.fill_in({})

    def fill_in(self, values: Mapping[str, Any]) -> None:
        """Give a value to each setting that the user has left to `init_from`, and check all settings again.

        Args:
            values: Values by name; a setting that is missing there takes its default.
        """
        for name, rules in rows(self).items():
            if rules.from_origin and getattr(self, name) is None:
                setattr(self, name, values.get(name, rules.default))
        self._check()

    def _check(self) -> None:
        for each in (self, *self.techniques.values()):
            check(each)
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Check what several settings decide together.

        Raises:
            ValueError: If settings contradict each other, or one has no effect because of the others.
        """
        if self.lr_scheduler not in LR_SCHEDULERS:
            raise ValueError(f"lr_scheduler={self.lr_scheduler!r} is unknown: choose one of {', '.join(LR_SCHEDULERS)}")
        if self.last_blocks is not None and self.lora_rank is not None:
            raise ValueError("last_blocks and lora_rank each say what is trained: set one of them")
        if self.lora_rank is not None and self.optimizer == "muon":
            raise ValueError(
                "optimizer='muon' trains the matrices of the blocks, which lora_rank freezes: leave one of them out"
            )
        for decay in self.extra_ema_decays or []:
            if not 0 <= decay < 1:
                raise ValueError(f"extra_ema_decays has {decay}, which is outside [0, 1): the paper's decay is 0.9999")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"extra_ema_decays={self.extra_ema_decays} names a decay twice: leave one of them out")
        if (self.checkpoints_milestone_steps or 0) % self.checkpointing_steps:
            raise ValueError(
                f"checkpoints_milestone_steps={self.checkpoints_milestone_steps} is no multiple of checkpointing_steps="
                f"{self.checkpointing_steps}, and so names steps without a checkpoint: make it one"
            )
        self.check_model_fields()
        if self.validation_labels == []:
            raise ValueError("validation_labels=[] names no class: leave it out, or name some")
        if self.objective is not None and self.num_train_timesteps is not None:  # none of both is left to init_from
            self._check_objective()

    def _check_objective(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
        in_use = OBJECTIVES[self.objective].fields_in_use(self.beta_schedule)
        known = rows(self)
        for name in known.keys() & set(Schedule.FIELDS) - in_use:
            if (value := getattr(self, name)) not in (None, known[name].default):
                raise ValueError(
                    f"{name}={value!r} has no effect on objective={self.objective!r} with beta_schedule="
                    f"{self.beta_schedule!r}: leave it out"
                )
        if self.validation_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"validation_inference_steps={self.validation_inference_steps} is above num_train_timesteps="
                f"{self.num_train_timesteps}: lower it"
            )

    @property
    def schedule(self) -> dict[str, Any]:
        """Fields of `Schedule` that the settings give and the objective uses."""
        in_use = OBJECTIVES[self.objective].fields_in_use(self.beta_schedule)
        given = {name: getattr(self, name) for name in rows(self).keys() & in_use}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def density(self) -> TimestepDensity:
        """Density of the timesteps: the one that is set, else the objective's own, with the shift."""
        if self.timestep_density is None:
            return dataclasses.replace(OBJECTIVES[self.objective].density, shift=self.timestep_shift)
        return TimestepDensity(
            self.timestep_density, self.logit_normal_mean, self.logit_normal_std, self.timestep_shift
        )

    @property
    def ema_decays(self) -> list[float]:
        """All decays, the pipeline's first."""
        return [self.ema_decay, *(self.extra_ema_decays or [])]

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, as `settings.yaml` and checkpoints hold them."""
        own = {name: getattr(self, name) for name in rows(self)}
        return own | {name: getattr(each, name) for each in self.techniques.values() for name in rows(each)}


def all_rows() -> dict[str, Row]:
    """Return the rows of every setting, those of the techniques included, by name."""
    found = dict(rows(TrainSettings))
    for technique, each in TECHNIQUES.items():
        own = rows(each.Settings)
        assert not own.keys() & found.keys(), f"{technique} has a setting of a name that is taken"
        found |= own
    return found


def card_names(settings: TrainSettings | None = None) -> dict[str, str]:
    """Return the settings that a model card shows, by name, and what the card calls each.

    Args:
        settings: Settings of the training, to leave out those that have no effect because of another.
    """
    values = settings.to_dict() if settings else {}
    return {
        name: rules.card
        for name, rules in all_rows().items()
        if rules.card and not (rules.needs in values and values[rules.needs] in rules.idle)
    }
