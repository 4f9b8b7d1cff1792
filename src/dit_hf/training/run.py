"""A whole training run: data, VAE, model and objective put together, and all that is written while it goes.

    accelerate launch -m dit_hf.training.run FILE.yaml [--setting value ...]

The same command again goes on from the newest checkpoint.
"""

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.optimization import get_scheduler
from tqdm import tqdm

from ..configuration_dit import DiTConfig, PaperSize
from ..data.latents import LatentEncoder
from ..data.streaming import ImageStream, Position, open_images, select_classes
from ..diffusion import OBJECTIVES
from ..diffusion.objectives import Objective
from ..finetuning import Start, check_origin, load_origin, merged, save_lora, start_from
from ..hub.background import BackgroundPush
from ..hub.card import write_training_card
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline
from .checkpoint import Progress, TrainingState, load_latest
from .ema import make_ema
from .loop import KeyedDraws, LatentBatch, StepRecord, train_steps
from .output import Meter, RunFolder, save_samples
from .report import plot_losses
from .settings import TrainSettings, changed_settings, parse_settings

logger = get_logger("dit_hf.training")


def run(settings: TrainSettings) -> Path:
    """Train, and return the folder of the finished pipeline, `output_dir/pipeline`.

    Raises:
        ValueError: if the settings do not fit the data, the VAE or the checkpoint that the run would go on from, or
            fewer processes started than the launcher was asked for.
    """
    accelerator = start_accelerator(settings)
    set_seed(settings.seed)  # the same fresh weights on every process
    folder = RunFolder(Path(settings.output_dir), accelerator)
    push = start_push(settings, accelerator)

    dataset = open_images(settings.dataset_name, settings.dataset_split, settings.image_column, settings.label_column)
    class_names = dataset.features["label"].names
    chosen = class_names
    if settings.class_names_file:
        chosen = [line for line in Path(settings.class_names_file).read_text().splitlines() if line]
    vae = AutoencoderKL.from_pretrained(settings.vae_name_or_path).to(accelerator.device)
    objective = make_objective(settings)
    start = make_model(settings, vae, objective, chosen)
    model = start.model
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    state, prepared = make_state(settings, accelerator, model)
    check_previews(settings, model.config)
    progress = resume(folder, settings, state)
    if progress.step >= settings.max_train_steps:
        logger.info(f"nothing to do: {folder.path} is at step {progress.step} of {settings.max_train_steps}")

    stream = ImageStream(
        dataset,
        label_map=select_classes(class_names, chosen),
        batch_size=settings.train_batch_size,
        resolution=settings.resolution,
        random_flip=settings.random_flip,
        num_jitters=settings.num_jitters,
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start=Position(progress.epoch, progress.offset),
    )
    encoder = LatentEncoder(vae, settings.seed, settings.cache_latents)
    pipeline = DiTPipeline(
        transformer=state.ema.module,
        vae=vae,
        scheduler=make_scheduler(objective),
        id2label=dict(enumerate(start.names)) if model.config.num_classes else None,
        prediction_type=objective.prediction_type,
    )
    records = train_steps(
        accelerator,
        *prepared,
        state.lr_scheduler,
        state.ema,
        objective,
        latent_batches(
            stream, encoder, accelerator.device, settings, start.places if model.config.num_classes else None
        ),
        KeyedDraws(settings.seed, objective, model.config.class_dropout_prob if model.config.has_null_class else 0),
        first_step=progress.step,
        images_seen=progress.images_seen,
        max_grad_norm=settings.max_grad_norm,
    )
    train_and_write(settings, accelerator, folder, state, progress, records, pipeline, push)
    if accelerator.is_main_process:
        finish(settings, folder, pipeline, push)
    accelerator.end_training()
    return folder.path / "pipeline"


def start_accelerator(settings: TrainSettings) -> Accelerator:
    """Start Accelerate with every process and every core that was asked for.

    Raises:
        ValueError: if the launcher was asked for more processes than started, or the tracker is not installed.
    """
    available = ["none", *(tracker.value for tracker in get_available_trackers())]
    if settings.report_to not in available:
        raise ValueError(
            f"report_to={settings.report_to!r} is not installed: choose one of {', '.join(available)}, or install it"
        )
    accelerator = Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_config=ProjectConfiguration(settings.output_dir, logging_dir=str(Path(settings.output_dir) / "logs")),
    )
    # torchrun says how many it starts. `accelerate launch --num_processes 2` on a machine without GPU names a master
    # and then starts a single process without a rank.
    by_accelerate = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    asked = int(os.environ.get("WORLD_SIZE", 2 if by_accelerate else 1))
    if accelerator.num_processes < asked:
        raise ValueError(
            f"{accelerator.num_processes} process started where {asked} or more were asked for: use `torchrun "
            "--nproc_per_node N` or `accelerate launch --multi_gpu --num_processes N`, which start N also without GPUs"
        )
    check_accelerator(settings, accelerator)
    # `accelerate launch` sets OMP_NUM_THREADS=1 on every process.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_user = int(os.environ.get("OMP_NUM_THREADS", 1))
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(settings.num_threads or (by_user if by_user > 1 else share))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.allow_tf32
    logger.info(
        f"{accelerator.num_processes} processes on {accelerator.device}, {torch.get_num_threads()} threads each, "
        f"mixed precision: {accelerator.mixed_precision}, {global_batch_size(settings, accelerator)} images a step"
    )
    return accelerator


def check_accelerator(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Refuse what the launcher's configuration would change behind the settings' back.

    Raises:
        ValueError: for sharded training, and for another number of accumulation steps.
    """
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"distributed_type={accelerator.distributed_type} is not supported yet: launch on one process, or with "
            "--multi_gpu"
        )
    if accelerator.gradient_accumulation_steps != settings.gradient_accumulation_steps:
        raise ValueError(
            f"the launcher sets gradient_accumulation_steps={accelerator.gradient_accumulation_steps}, the settings "
            f"{settings.gradient_accumulation_steps}: set it in one place"
        )


def global_batch_size(settings: TrainSettings, accelerator: Accelerator) -> int:
    """Images of one optimiser step, over all processes."""
    return settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes


def start_push(settings: TrainSettings, accelerator: Accelerator) -> BackgroundPush | None:
    """Check that the pipeline may be pushed, before anything is computed; None on other processes or if not asked."""
    if not (settings.push_to_hub and accelerator.is_main_process):
        return None
    repo_id = settings.hub_model_id or Path(settings.output_dir).resolve().name
    return BackgroundPush(repo_id, private=settings.hub_private_repo)


def make_objective(settings: TrainSettings) -> Objective:
    """The objective of the table `OBJECTIVES` that the settings name.

    Raises:
        ValueError: if there is none of that name.
    """
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"objective={settings.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
    betas = {} if settings.objective == "flow" else {"beta_start": settings.beta_start, "beta_end": settings.beta_end}
    return OBJECTIVES[settings.objective](settings.num_train_timesteps, settings.beta_schedule, **betas)


def make_scheduler(objective: Objective) -> SchedulerMixin:
    """The diffusers scheduler that samples what the objective trains."""
    config = objective.scheduler_config()
    return getattr(diffusers, config["_class_name"]).from_config(config)


def model_config(settings: TrainSettings, vae: AutoencoderKL, num_classes: int) -> DiTConfig:
    """The paper's size that the settings name, fitted to the VAE's latents, the classes and the objective.

    Raises:
        ValueError: if the resolution is no multiple of what the VAE shrinks by.
    """
    shrink = 2 ** (len(vae.config.block_out_channels) - 1)
    if settings.resolution % shrink:
        raise ValueError(
            f"resolution={settings.resolution} is no multiple of {shrink}, by which the VAE shrinks images: "
            f"take {settings.resolution // shrink * shrink or shrink}"
        )
    fitted = {
        "sample_size": settings.resolution // shrink,
        "in_channels": vae.config.latent_channels,
        "num_classes": num_classes,
        "learn_sigma": settings.objective == "hybrid",
    }
    try:
        overrides = json.loads(settings.model_overrides)
    except json.JSONDecodeError as error:
        raise ValueError(f"model_overrides={settings.model_overrides!r} is no JSON object: {error}") from error
    return DiTConfig.from_name(settings.model, **{**fitted, **overrides})


def make_model(settings: TrainSettings, vae: AutoencoderKL, objective: Objective, names: list[str]) -> Start:
    """A fresh model, or the one of `init_from` with the classes of the data.

    Raises:
        ValueError: if `init_from` is not the model that the other settings describe.
    """
    config = model_config(settings, vae, len(names))
    if not settings.init_from:
        return Start(DiTModel(config), names, list(range(len(names))))
    origin = load_origin(settings.init_from)
    by_name = PaperSize._fields[:4] if settings.model != TrainSettings.model else ()
    fields = {"in_channels", "learn_sigma", *by_name, *json.loads(settings.model_overrides)}
    scheduler = objective.scheduler_config()
    names_of_betas = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
    check_origin(
        origin,
        {field: getattr(config, field) for field in sorted(fields)},
        {name: scheduler[name] for name in names_of_betas if name in scheduler}
        | {"prediction_type": objective.prediction_type, "scaling_factor": vae.config.scaling_factor},
    )
    return start_from(
        origin,
        names if config.num_classes else [],
        sample_size=config.sample_size,
        keep_classes=settings.keep_classes,
        position_embedding=settings.position_embedding,
        last_blocks=settings.last_blocks,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
    )


def make_state(
    settings: TrainSettings, accelerator: Accelerator, model: DiTModel
) -> tuple[TrainingState, tuple[torch.nn.Module, torch.optim.Optimizer]]:
    """EMA, optimiser and learning rate; what checkpoints hold, and what the loop runs."""
    remaining = settings.ema_decay**settings.max_train_steps
    if remaining > 1e-3:
        warnings.warn(
            f"ema_decay={settings.ema_decay} keeps {remaining:.1%} of the fresh weights after "
            f"{settings.max_train_steps} steps: choose a smaller decay for a short training",
            stacklevel=2,
        )
    model.to(accelerator.device).train()
    ema = make_ema(model, settings.ema_decay)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        fused=True,
    )
    lr_scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    prepared = accelerator.prepare(model, optimizer)
    return TrainingState(model, ema, optimizer, lr_scheduler), prepared


def check_previews(settings: TrainSettings, config: DiTConfig) -> None:
    """Refuse before the first step what the first preview would trip over.

    Raises:
        ValueError: for labels or numbers of steps that the model does not have.
    """
    for label in settings.validation_labels or []:
        if not 0 <= label < config.num_classes:
            raise ValueError(f"validation_labels has {label}: the model has the classes 0..{config.num_classes - 1}")
    if settings.validation_inference_steps > settings.num_train_timesteps:
        raise ValueError(
            f"validation_inference_steps={settings.validation_inference_steps} is above num_train_timesteps="
            f"{settings.num_train_timesteps}: lower it"
        )


def resume(folder: RunFolder, settings: TrainSettings, state: TrainingState) -> Progress:
    """Restore the newest checkpoint of the folder, if it has one.

    Raises:
        ValueError: if the settings or the number of processes would change what the steps compute, naming each.
    """
    found = load_latest(folder.checkpoints, state)
    if found is None:
        folder.begin(settings)
        return Progress()
    progress, before = found
    if changes := changed_settings(before, settings):
        listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items())
        raise ValueError(
            f"{folder.path} holds a training with other settings: {listed}. "
            "Set them back, or choose another --output_dir"
        )
    batch, batch_before = global_batch_size(settings, folder.accelerator), progress.images_seen // progress.step
    if batch != batch_before:
        raise ValueError(
            f"{folder.path} was trained with {batch_before} images a step and would go on with {batch}: "
            "choose --train_batch_size so that the product with the number of processes stays"
        )
    logger.info(f"going on from step {progress.step}, {progress.images_seen} images seen")
    folder.begin(settings, progress.step)
    return progress


def latent_batches(
    stream: ImageStream, encoder: LatentEncoder, device: torch.device, settings: TrainSettings, places: list[int] | None
) -> Iterator[LatentBatch]:
    """Endless latents of this process. The loader has a random generator of its own, as it draws from it.

    `places` are those of the data's classes among the model's; None for a model without classes.
    """
    loader = torch.utils.data.DataLoader(
        stream, batch_size=None, num_workers=settings.dataloader_num_workers, generator=torch.Generator()
    )
    for batch in loader:
        yield LatentBatch(
            x_0=encoder(batch).to(device),
            class_labels=torch.tensor(places)[batch.class_labels].to(device) if places else None,
            positions=batch.positions,
            next_position=batch.next_position,
        )


def train_and_write(
    settings: TrainSettings,
    accelerator: Accelerator,
    folder: RunFolder,
    state: TrainingState,
    progress: Progress,
    records: Iterator[StepRecord],
    pipeline: DiTPipeline,
    push: BackgroundPush | None,
) -> None:
    """Draw steps from the loop, and write metrics, previews and checkpoints at theirs."""
    meter = Meter(accelerator)
    bar = tqdm(
        desc="train",
        total=settings.max_train_steps,
        initial=progress.step,
        disable=not accelerator.is_main_process,
        mininterval=1,
    )
    deadline = time.monotonic() + 60 * settings.max_train_minutes if settings.max_train_minutes else None
    done = progress.step >= settings.max_train_steps
    while not done:
        record = next(records)
        progress = Progress(record.step, record.images_seen, *record.position)
        meter.add(record)
        bar.update()
        done = record.step >= settings.max_train_steps or _any_process(accelerator, _is_past(deadline))
        if record.step % settings.logging_steps == 0 or done:
            metrics = meter.read(record)
            folder.log(metrics)
            accelerator.log(metrics, step=record.step)
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(
                    f"loss={metrics['loss']} at step {record.step}: lower --learning_rate, or set --max_grad_norm 1; "
                    f"the checkpoints in {folder.checkpoints} are from before"
                )
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", images_per_second=f"{metrics['images_per_second']:.1f}")
        if record.step % settings.checkpointing_steps == 0 or done:
            folder.checkpoint(state, progress, settings)
            if push and not done and not settings.lora_rank:  # an adapter is pushed at the end
                push.push_checkpoint(pipeline, folder.path, record.step, settings.hub_license)
        if record.step % settings.validation_steps == 0 or done:
            folder.preview(pipeline, record.step, settings)
        if record.step % settings.checkpointing_steps == 0 or record.step % settings.validation_steps == 0:
            meter.restart_clock()
    bar.close()


def finish(settings: TrainSettings, folder: RunFolder, pipeline: DiTPipeline, push: BackgroundPush | None) -> None:
    """Save the pipeline with the EMA weights, load it back as a user would, sample it, draw the loss curve, push."""
    if push:
        push.wait()  # it reads the folder
    if settings.lora_rank:
        save_lora(pipeline.transformer, folder.path / "adapter", pipeline.config.id2label, settings.init_from)
    pipeline = merged(pipeline)
    pipeline.save_pretrained(folder.path / "pipeline")
    loaded = DiTPipeline.from_pretrained(folder.path / "pipeline").to(pipeline.device)
    save_samples(loaded, folder.path / "samples.png", settings)
    plot_losses(folder.path / "metrics.jsonl", folder.path / "loss.png")
    write_training_card(pipeline, folder.path / "pipeline", folder.path, settings.hub_license)
    if push:
        push.start(folder.path / ("adapter" if settings.lora_rank else "pipeline"), "End of training")
        push.wait()
    folder.write_status("finished")
    logger.info(f"wrote {folder.path / 'pipeline'}")


def _is_past(deadline: float | None) -> bool | None:
    return None if deadline is None else time.monotonic() > deadline


def _any_process(accelerator: Accelerator, flag: bool | None) -> bool:
    """Whether the flag is set on any process, agreed by all; None, on all, asks nobody."""
    if flag is None:
        return False
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item())


def main(arguments: list[str] | None = None) -> None:
    """Read the settings and run; a wrong setting ends with one line and a non-zero exit code."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dit_hf").setLevel(logging.INFO)
    try:
        run(parse_settings(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
