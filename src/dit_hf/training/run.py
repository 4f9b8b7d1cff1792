"""A whole training run: data, VAE, model and objective put together, and all that is written while it goes.

    accelerate launch -m dit_hf.training.run FILE.yaml [--setting value ...]

The same command again goes on from the newest checkpoint.
"""

import contextlib
import copy
import importlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, SchedulerMixin

from ..cards.pipeline import write_training_card
from ..configuration_dit import DiTConfig, PaperSize
from ..data.labels import read_map, read_names
from ..data.latents import LatentEncoder
from ..data.moments import check_latents
from ..data.sources import ImageSource, open_images
from ..data.streaming import ImageBatch, ImageStream, Position
from ..diffusion import OBJECTIVES, Objective, Schedule
from ..files import watched
from ..finetuning import merged, save_lora
from ..hub.background import BackgroundPush, save_training_pipeline
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline
from ..vae import vae_shrink_factor
from .assembly import Assembly, assemble
from .feed import BatchFeed
from .loop import KeyedDraws, LatentBatch, train_steps
from .observer import Observer, watched_draws
from .processes import deepspeed_zero
from .processes.launch import on_main_process, splits_weights, start_training_accelerator
from .processes.signals import EXIT_CODES, Preempted, StopRequest, leave, shield_worker
from .reporting.distances import Distance
from .reporting.loss_curve import plot_losses
from .reporting.metrics import Meter
from .reporting.previews import PreviewStopped, save_grid
from .reporting.run_folder import RunFolder
from .reporting.throughput import count_training_flops, device_peak
from .saving.checkpoint import Progress
from .saving.lock import FolderLock
from .saving.resume import resume
from .settings import TrainSettings, parse_settings, read_yaml, rows
from .start import InitialModel, adapt_to_data, check_origin, load_origin
from .trainer import Trainer

logger = get_logger("dit_hf.training")


def run(settings: TrainSettings, *, observer: Observer | None = None, stop: StopRequest | None = None) -> Path:
    """Train, and return the folder of the finished pipeline, `output_dir/pipeline`.

    Args:
        settings: Settings of the run.
        observer: Object whose methods are called at known moments of the run.
        stop: Request to stop, which a caller may make by itself; by default only signals do.

    Raises:
        ValueError: if the settings do not fit the data, the VAE or the checkpoint that the run would go on from, if
            another run is in the folder, or if fewer processes started than the launcher was asked for.
        Preempted: If the run was asked to stop by a signal or by `stop`, once a checkpoint is saved.
        KeyboardInterrupt: At a second Ctrl-C, without a checkpoint.
        FloatingPointError: after `max_skipped_steps` in a row whose loss or gradient is not finite.
        MemoryError: if a step does not fit the device's memory.
    """
    accelerator = start_training_accelerator(settings)
    folder = RunFolder(settings, accelerator, observer)
    stop = StopRequest() if stop is None else stop
    with stop, watched(folder.observer.on_disk), contextlib.ExitStack() as stack:
        on_main_process(accelerator, lambda: bool(stack.enter_context(FolderLock(folder.path))))
        try:
            pipeline = assemble_and_train(settings, accelerator, folder, stop)
        except BaseException as error:
            is_agreed = isinstance(error, Preempted)  # by all processes; the others' ends are not waited for otherwise
            if folder.has_begun and accelerator.is_main_process:
                received = {"signal": stop.received.name, "exit_code": stop.exit_code} if stop.received else {}
                state, reason = "preempted" if is_agreed else "failed", str(error) or repr(error)
                folder.status.write(state, step=folder.checkpoints.newest_step, reason=reason, **received)
            if is_agreed or accelerator.num_processes == 1:
                accelerator.end_training()
            raise
        accelerator.end_training()
    return pipeline


def assemble_and_train(settings: TrainSettings, accelerator: Accelerator, folder: RunFolder, stop: StopRequest) -> Path:
    """Put together what the settings name, and train it."""
    folder.observer.on_begin("start")
    set_seed(settings.seed)  # the same fresh weights on every process
    distance = load_distance(settings)
    push = start_push(settings, accelerator)

    source = open_source(settings)
    class_names = source.classes.names
    vae = AutoencoderKL.from_pretrained(settings.vae_name_or_path).to(accelerator.device)
    if source.latents:
        check_latents(
            source.latents,
            vae,
            resolution=settings.resolution,
            random_flip=settings.random_flip,
            num_jitters=settings.num_jitters,
        )
    objective = make_objective(settings)
    start = make_model(settings, vae, objective, class_names)
    model = start.model
    is_split = splits_weights(accelerator)
    if settings.lora_rank and (is_split or deepspeed_zero.uses_zero(accelerator)):
        raise ValueError("lora_rank: adapters are trained whole on each process, launch without FSDP and DeepSpeed")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    sampler = copy.deepcopy(model) if is_split else None
    meter = make_meter(accelerator, model)
    assembly = build_state(settings, accelerator, model)
    state = assembly.state
    check_previews(settings, model.config)
    progress = resume(folder.checkpoints.folder, settings, state)
    folder.begin(settings, progress.step)
    folder.observer.on_model(assembly.model)

    stream = open_stream(settings, source, accelerator, progress)
    encoder = LatentEncoder(vae, settings.seed, settings.cache_latents)
    pipeline = None
    if accelerator.is_main_process:
        pipeline = DiTPipeline(
            transformer=sampler.eval().to(accelerator.device) if sampler else state.ema.module,
            vae=vae,
            scheduler=make_scheduler(objective),
            id2label=dict(enumerate(start.names)) if model.config.num_classes else None,
            prediction_type=objective.prediction_type,
        )
    class_indices = start.class_indices if model.config.num_classes else None
    batches = latent_batches(stream.batches(stop.__bool__), encoder, accelerator.device, class_indices)
    feed = BatchFeed(batches, settings.gradient_accumulation_steps)
    dropout = model.config.class_dropout_prob if model.config.has_null_class else 0
    records = train_steps(
        accelerator,
        assembly.model,
        assembly.optimizer,
        state.lr_scheduler,
        state.ema,
        objective,
        iter(feed),
        watched_draws(KeyedDraws(settings.seed, objective, dropout), folder.observer),
        first_step=progress.step,
        images_seen=progress.images_seen,
        max_grad_norm=settings.max_grad_norm,
    )
    work = Trainer(settings, accelerator, folder, stop, state, pipeline, push, meter, distance, stream, feed)
    folder.observer.on_end("start")
    work.train(progress, records)
    work.refresh_pipeline()
    if pipeline is not None:
        with folder.observer.phase("finish"):
            finish(work, pipeline)
    return folder.path / "pipeline"


def open_source(settings: TrainSettings) -> ImageSource:
    """Open the data set, and write into the settings which version of it was found, so that a resumed run compares it.

    A run that goes on takes the version that it began with, also where the Hub has a newer one.
    """
    before = Path(settings.output_dir) / "settings.yaml"
    recorded = read_yaml(before) if before.exists() else {}
    if settings.dataset_revision is None and recorded.get("dataset_name") == settings.dataset_name:
        settings.dataset_revision = recorded.get("dataset_revision")
    source = open_images(
        settings.dataset_name,
        settings.dataset_split,
        settings.image_column,
        settings.label_column,
        config_name=settings.dataset_config_name,
        revision=settings.dataset_revision,
        class_names=read_names(settings.class_names_file),
        label_map=read_map(settings.label_map_file),
    )
    settings.dataset_revision = source.revision
    return source


def open_stream(
    settings: TrainSettings, source: ImageSource, accelerator: Accelerator, progress: Progress
) -> ImageStream:
    """Return the images of this process, from the position on that the training has come to."""
    return ImageStream(
        source,
        batch_size=settings.train_batch_size,
        resolution=settings.resolution,
        random_flip=settings.random_flip,
        num_jitters=settings.num_jitters,
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start=Position(progress.epoch, progress.offset),
        images_seen=progress.images_seen,
        bad_images=progress.bad_images,
        num_workers=settings.dataloader_num_workers,
        max_bad_images=settings.max_bad_images,
        worker_init=shield_worker,
    )


def start_push(settings: TrainSettings, accelerator: Accelerator) -> BackgroundPush | None:
    """Check that the pipeline may be pushed, before anything is computed; None on other processes or if not asked."""
    if not (settings.push_to_hub and accelerator.is_main_process):
        return None
    repo_id = settings.hub_model_id or Path(settings.output_dir).resolve().name
    return BackgroundPush(repo_id, private=settings.hub_private_repo)


def make_objective(settings: TrainSettings) -> Objective:
    """The objective of the table `OBJECTIVES` that the settings name."""
    return OBJECTIVES[settings.objective](**settings.schedule)


def make_scheduler(objective: Objective) -> SchedulerMixin:
    """The diffusers scheduler that samples what the objective trains."""
    config = objective.scheduler_config()
    return getattr(diffusers, config["_class_name"]).from_config(config)


def model_config(settings: TrainSettings, vae: AutoencoderKL, num_classes: int) -> DiTConfig:
    """The paper's size that the settings name, fitted to the VAE's latents, the classes and the objective.

    Raises:
        ValueError: if the resolution is no multiple of what the VAE shrinks by.
    """
    shrink = vae_shrink_factor(vae.config)
    if settings.resolution % shrink:
        raise ValueError(
            f"resolution={settings.resolution} is no multiple of {shrink}, by which the VAE shrinks images: "
            f"take {settings.resolution // shrink * shrink or shrink}"
        )
    fitted = {
        "sample_size": settings.resolution // shrink,
        "in_channels": vae.config.latent_channels,
        "num_classes": num_classes,
        "learn_sigma": OBJECTIVES[settings.objective].learns_variance,
    }
    try:
        overrides = json.loads(settings.model_overrides)
    except json.JSONDecodeError as error:
        raise ValueError(f"model_overrides={settings.model_overrides!r} is no JSON object: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f"model_overrides={settings.model_overrides!r} is no JSON object: pass names and values")
    return DiTConfig.from_name(settings.model, **{**fitted, **overrides})


def make_model(settings: TrainSettings, vae: AutoencoderKL, objective: Objective, names: list[str]) -> InitialModel:
    """A fresh model, or the one of `init_from` with the classes of the data.

    Raises:
        ValueError: if `init_from` is not the model that the other settings describe.
    """
    config = model_config(settings, vae, len(names))
    if not settings.init_from:
        return InitialModel(DiTModel(config), names, list(range(len(names))))
    origin = load_origin(settings.init_from)
    by_name = PaperSize._fields[:4] if settings.model != rows(settings)["model"].default else ()
    fields = {"in_channels", "learn_sigma", *by_name, *json.loads(settings.model_overrides)}
    scheduler = objective.scheduler_config()
    check_origin(
        origin,
        {field: getattr(config, field) for field in sorted(fields)},
        {name: scheduler[name] for name in Schedule.FIELDS if name in scheduler}
        | {"prediction_type": objective.prediction_type, "scaling_factor": vae.config.scaling_factor},
    )
    return adapt_to_data(
        origin,
        names if config.num_classes else [],
        sample_size=config.sample_size,
        keep_classes=settings.keep_classes,
        position_embedding=settings.position_embedding,
        last_blocks=settings.last_blocks,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
    )


def build_state(settings: TrainSettings, accelerator: Accelerator, model: DiTModel) -> Assembly:
    """Assemble the model's training as the settings say, and warn of an average that is too slow for it."""
    for decay in settings.ema_decays:
        remaining = decay**settings.max_train_steps
        if remaining > 1e-3:
            warnings.warn(
                f"ema_decay={decay} keeps {remaining:.1%} of the fresh weights after {settings.max_train_steps} steps: "
                "choose a smaller decay for a short training",
                stacklevel=2,
            )
    if deepspeed_zero.uses_zero(accelerator):
        deepspeed_zero.configure(settings, accelerator)
    return assemble(
        accelerator,
        model,
        learning_rate=settings.learning_rate,
        ema_decays=settings.ema_decays,
        lr_scheduler=settings.lr_scheduler,
        lr_warmup_steps=settings.lr_warmup_steps,
        max_train_steps=settings.max_train_steps,
        adam_betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        compile_blocks=settings.torch_compile,
    )


def check_previews(settings: TrainSettings, config: DiTConfig) -> None:
    """Refuse before the first step what the first preview would trip over.

    Raises:
        ValueError: for labels or numbers of steps that the model does not have.
    """
    for label in settings.validation_labels or []:
        if not 0 <= label < config.num_classes:
            raise ValueError(f"validation_labels has {label}: the model has the classes 0..{config.num_classes - 1}")


def latent_batches(
    batches: Iterator[ImageBatch | None],
    encoder: LatentEncoder,
    device: torch.device,
    class_indices: list[int] | None,
) -> Iterator[LatentBatch | None]:
    """Yield the latents of this process without end; None if the run was asked to stop while it waited for a batch.

    Args:
        batches: Prepared images of this process, as `ImageStream.batches` yields them.
        encoder: Encoder of images to latents.
        device: Device of the latents.
        class_indices: Class of the model for each class of the data; None for an unconditional model.
    """
    for batch in batches:
        if batch is None:
            yield None
            continue
        yield LatentBatch(
            x_0=encoder(batch).to(device),
            class_labels=torch.tensor(class_indices)[batch.class_labels].to(device) if class_indices else None,
            positions=list(batch.positions),
            next_position=batch.next_position,
        )


def load_distance(settings: TrainSettings) -> Distance | None:
    """The function that `validation_distance` names.

    Raises:
        ValueError: if there is none.
    """
    if settings.validation_distance is None:
        return None
    module, _, name = settings.validation_distance.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"validation_distance={settings.validation_distance!r} is not found: {error}. Write module:function, of a "
            "module that Python can import"
        ) from error


def make_meter(accelerator: Accelerator, model: DiTModel) -> Meter:
    """A meter that knows what one image costs, and what the device promises."""
    device, config = accelerator.device, model.config
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    with torch.device("meta"):
        latents = torch.empty(1, config.in_channels, *config.sample_height_width)
        labels = [torch.empty(1, dtype=torch.long)] if config.num_classes else []
        flops = count_training_flops(DiTModel(config).eval(), latents, torch.empty(1), *labels)
    return Meter(accelerator, flops, device_peak(name, accelerator.mixed_precision))


def finish(work: Trainer, pipeline: DiTPipeline) -> None:
    """Save the pipeline with the EMA weights, load it back as a user would, sample it, draw the loss curve, push.

    Raises:
        Preempted: if asked to stop meanwhile; the same command again finishes.
    """
    settings, path, push = work.settings, work.folder.path, work.push
    work.wait_for_push()  # it reads the folder
    if settings.lora_rank:
        save_lora(pipeline.transformer, path / "adapter", pipeline.config.id2label, settings.init_from)
    pipeline = merged(pipeline)
    save_training_pipeline(pipeline, path, settings.hub_license)
    loaded = DiTPipeline.from_pretrained(path / "pipeline").to(pipeline.device)
    try:
        save_grid(work.folder.previews.draw(loaded, lambda: bool(work.stop)), path / "samples.png")
    except PreviewStopped as error:
        raise Preempted("asked to stop at the end of the training") from error
    plot_losses(path / "metrics.jsonl", path / "loss.png")
    write_training_card(pipeline, path / "pipeline", path, settings.hub_license)
    if push:
        push.start(path / ("adapter" if settings.lora_rank else "pipeline"), "End of training")
        work.wait_for_push()
    work.folder.status.write("finished", step=work.folder.checkpoints.newest_step)
    logger.info(f"wrote {path / 'pipeline'}")


def main(
    arguments: list[str] | None = None, *, observer: Observer | None = None, stop: StopRequest | None = None
) -> None:
    """Read the settings and run.

    A wrong setting ends with one line and exit code 1, a request to stop with the codes of `signals.EXIT_CODES`.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dit_hf").setLevel(logging.INFO)
    stop = StopRequest() if stop is None else stop
    try:
        run(parse_settings(sys.argv[1:] if arguments is None else arguments), observer=observer, stop=stop)
    except Preempted as stopped:
        logger.info(f"{stopped}; exit code {stop.exit_code}")
        leave(stop.exit_code)
    except KeyboardInterrupt:
        logger.info("ended at once, without a checkpoint; the same command goes on from the newest one")
        leave(EXIT_CODES[signal.SIGINT])
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        sys.exit(f"error: {rank}{error}")


if __name__ == "__main__":
    main()
