"""A whole training: what the settings name is put together, trained, and written to a folder.

    accelerate launch -m dit_hf.training.run FILE.yaml [--setting value ...]

The same command again resumes from the newest checkpoint. To follow one batch through a training, read `train` below:
`batches.py` reads and encodes it, `loop.py` draws its noise and takes the step, `trainer.py` does what is due after a
step (metrics, previews, checkpoints), and `finish.py` saves the pipeline.
"""

import contextlib
import copy
import functools
import importlib
import signal
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from ..cards.training import TrainingCard
from ..configuration_dit import DiTConfig
from ..data.latents import LatentEncoder
from ..files import watched
from ..flags import exit_with_line, print_log
from ..hub.background import BackgroundPush, save_training_pipeline
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline
from .assembly import Assembly, assemble_as_set, build_techniques
from .batches import check_extras, check_stored_latents, latent_batches, open_source, open_stream
from .feed import BatchFeed
from .finish import finish, save_adapter
from .loop import KeyedDraws, train_steps
from .observer import Observer, watched_draws
from .processes import deepspeed_zero
from .processes.launch import on_main_process, start_training_accelerator
from .processes.sharding import splits_weights
from .processes.signals import EXIT_CODES, Preempted, StopRequest, leave
from .processes.terminal import outlast_terminal
from .reporting.announcement import announce
from .reporting.distances import Distance
from .reporting.metrics import Meter
from .reporting.previews import MAX_IMAGES
from .reporting.run_folder import RunFolder
from .reporting.throughput import count_training_flops, device_peak
from .saving.lock import FolderLock
from .saving.resume import resume
from .settings import TrainSettings, all_rows, card_names, parse_settings, rows
from .start import choose_start, make_scheduler
from .techniques import Techniques
from .trainer import Trainer

logger = get_logger("dit_hf.training")


def run(settings: TrainSettings, *, observer: Observer | None = None, stop: StopRequest | None = None) -> Path:
    """Train, and return the folder of the finished pipeline, `output_dir/pipeline`.

    Args:
        settings: Settings of the run.
        observer: Object whose methods are called at known moments of the run.
        stop: Request to stop, which a caller may make by itself; by default only signals do.

    Raises:
        ValueError: If the settings do not fit the data, the VAE, `init_from` or the checkpoint to resume from, if
            another run is in the folder, or if fewer processes started than the launcher was asked for.
        Preempted: If the run was asked to stop by a signal or by `stop`, once a checkpoint is saved.
        KeyboardInterrupt: At a second Ctrl-C, without a checkpoint.
        FloatingPointError: After `max_skipped_steps` in a row whose loss or gradient is not finite.
        MemoryError: If a step does not fit the device's memory.
    """
    accelerator = start_training_accelerator(settings)
    settings.mixed_precision = accelerator.mixed_precision  # the launcher's, if the settings leave it open
    folder = RunFolder(settings, accelerator, observer)
    stop = StopRequest() if stop is None else stop
    with stop, watched(folder.observer.on_disk), contextlib.ExitStack() as stack:
        on_main_process(accelerator, lambda: bool(stack.enter_context(FolderLock(folder.path))))
        try:
            pipeline = train(settings, accelerator, folder, stop)
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


def train(settings: TrainSettings, accelerator: Accelerator, folder: RunFolder, stop: StopRequest) -> Path:
    """Put together what the settings name, and train it."""
    folder.observer.on_begin("start")
    set_seed(settings.seed)  # the same fresh weights on every process
    distance = load_distance(settings.validation_distance)
    card = TrainingCard(folder.path, settings.to_dict(), card_names(settings))
    push = start_push(settings, accelerator, card)

    # data, VAE, objective and model
    source = open_source(settings)
    start = choose_start(settings, source.classes.names)
    model, vae, objective = start.model, start.vae.to(accelerator.device), start.objective
    card.read_settings(settings.to_dict())  # with those that `init_from` decided
    check_stored_latents(settings, source, vae)
    check_previews(settings, model.config)
    is_split = splits_weights(accelerator)
    if settings.lora_rank and (is_split or deepspeed_zero.uses_zero(accelerator)):
        raise ValueError("lora_rank: adapters are trained whole on each process, launch without FSDP and DeepSpeed")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    techniques = build_techniques(settings, objective, model)
    check_extras(techniques.extras, source)

    # what is trained, and from which step on
    sampler = copy.deepcopy(model) if is_split else None
    meter = make_meter(accelerator, model)
    assembly = build_state(settings, accelerator, model, techniques)
    state = assembly.state
    progress = resume(folder.checkpoints.folder, settings, state)
    folder.begin(settings, progress.step)
    announce(settings, sampler or model, meter.flops_per_image, accelerator.num_processes, progress.step)
    folder.observer.on_model(assembly.model)

    # batches, draws and steps
    stream = open_stream(settings, source, accelerator, progress)
    encoder = LatentEncoder(vae, settings.seed, settings.cache_latents)
    batches = latent_batches(
        stream.batches(stop.__bool__), encoder, accelerator.device, start.class_indices, techniques.extras
    )
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
        techniques=techniques,
        first_step=progress.step,
        images_seen=progress.images_seen,
        max_grad_norm=settings.max_grad_norm,
    )
    pipeline = None
    if accelerator.is_main_process:
        pipeline = DiTPipeline(
            transformer=sampler.eval().to(accelerator.device) if sampler else state.ema.module,
            vae=vae,
            scheduler=make_scheduler(objective),
            id2label=dict(enumerate(start.names)) if model.config.num_classes else None,
            prediction_type=objective.prediction_type,
            guidance_scale=own_guidance(settings, model.config),
        )
    folder.previews.labels = folder.previews.labels or start.class_indices[:MAX_IMAGES]  # those of the data
    trainer = Trainer(settings, accelerator, folder, stop, state, pipeline, push, meter, distance, stream, feed)
    folder.observer.on_end("start")
    if settings.init_from and progress.step == 0:
        trainer.draw_before()
    with logging_redirect_tqdm():  # lines stand above the bar, not behind it
        trainer.train(progress, records)
    trainer.refresh_pipeline()
    if pipeline is not None:
        with folder.observer.phase("finish"):
            finish(trainer, pipeline, card)
    return folder.path / "pipeline"


def start_push(settings: TrainSettings, accelerator: Accelerator, card: TrainingCard) -> BackgroundPush | None:
    """Check that the pipeline or the adapter may be pushed; None on other processes, or if no push is asked for."""
    if not (settings.push_to_hub and accelerator.is_main_process):
        return None
    repo_id = settings.hub_model_id or Path(settings.output_dir).resolve().name
    save = functools.partial(save_adapter, settings) if settings.lora_rank else save_training_pipeline
    return BackgroundPush(repo_id, card, private=settings.hub_private_repo, save=save)


def build_state(settings: TrainSettings, accelerator: Accelerator, model: DiTModel, techniques: Techniques) -> Assembly:
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
        deepspeed_zero.configure(
            accelerator, train_batch_size=settings.train_batch_size, max_grad_norm=settings.max_grad_norm
        )
    return assemble_as_set(settings, accelerator, model, techniques)


def check_previews(settings: TrainSettings, config: DiTConfig) -> None:
    """Refuse previews that the model cannot draw, before the first step.

    Raises:
        ValueError: If a label is none of the model's classes, or the model has no guidance and a scale is set.
    """
    for label in settings.validation_labels or []:
        if not 0 <= label < config.num_classes:
            classes = f"the classes 0..{config.num_classes - 1}" if config.num_classes else "no classes"
            raise ValueError(f"validation_labels has {label}: the model has {classes}")
    if not config.has_null_class and settings.guidance_scale not in (1, rows(settings)["guidance_scale"].default):
        raise ValueError(
            f"guidance_scale={settings.guidance_scale} has no effect on a model without a null class: leave it out"
        )


def own_guidance(settings: TrainSettings, config: DiTConfig) -> float | None:
    """Return the scale of guidance that the finished pipeline states: that of the previews, if it was chosen."""
    is_chosen = config.has_null_class and settings.guidance_scale != rows(settings)["guidance_scale"].default
    return settings.guidance_scale if is_chosen else None


def load_distance(name: str | None) -> Distance | None:
    """Import the function that `validation_distance` names, written module:function.

    Raises:
        ValueError: If there is no such function.
    """
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"validation_distance={name!r} is not found: {error}. Write module:function, of a module that Python can "
            "import"
        ) from error


def make_meter(accelerator: Accelerator, model: DiTModel) -> Meter:
    """Return a meter that knows the operations of one image, and the peak of the device."""
    device, config = accelerator.device, model.config
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    with torch.device("meta"):
        latents = torch.empty(1, config.in_channels, *config.sample_height_width)
        labels = [torch.empty(1, dtype=torch.long)] if config.num_classes else []
        flops = count_training_flops(DiTModel(config).eval(), latents, torch.empty(1), *labels)
    return Meter(accelerator, flops, device_peak(name, accelerator.mixed_precision))


def main(
    arguments: list[str] | None = None, *, observer: Observer | None = None, stop: StopRequest | None = None
) -> None:
    """Read the settings and run.

    A wrong setting ends with one line and exit code 1, a request to stop with the codes of `signals.EXIT_CODES`.
    """
    outlast_terminal()
    print_log()
    stop = StopRequest() if stop is None else stop
    try:
        run(parse_settings(sys.argv[1:] if arguments is None else arguments), observer=observer, stop=stop)
    except Preempted as stopped:
        logger.info(f"{stopped}; exit code {stop.exit_code}")
        leave(stop.exit_code)
    except KeyboardInterrupt:
        logger.info("ended at once, without a checkpoint; the same command goes on from the newest one")
        leave(EXIT_CODES[signal.SIGINT])
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        exit_with_line(error, all_rows())


if __name__ == "__main__":
    main()
