"""Going on from a checkpoint: which one, whether the settings still fit it, and what is told when they do not."""

from pathlib import Path

from accelerate.logging import get_logger

from ..processes.launch import on_main_process
from ..reporting.run_folder import RunFolder
from ..settings import TrainSettings, changed_settings
from .checkpoint import (
    Progress,
    abandon_after,
    find_checkpoints,
    find_damage,
    newest_whole,
    read_info,
    step_of,
    sweep,
)
from .state import TrainingState

logger = get_logger("dit_hf.training")


def resume(folder: RunFolder, settings: TrainSettings, state: TrainingState) -> Progress:
    """Restore the checkpoint that the settings ask for; the newest one of the folder, if it has any, by default.

    Raises:
        ValueError: if the checkpoint that was asked for is missing or damaged, or if the settings would change what the
            steps compute and this is not allowed, naming each difference.
    """
    accelerator = folder.accelerator
    path = on_main_process(accelerator, lambda: choose_checkpoint(folder.checkpoints, settings.resume_from_checkpoint))
    if path is None:
        folder.begin(settings)
        return Progress()
    record = on_main_process(accelerator, lambda: read_info(path))
    changes = changed_settings(record.settings, settings, record.world_size, accelerator.num_processes)
    listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items())
    if changes and not settings.allow_config_change:
        raise ValueError(
            f"{path} is of a training with other settings: {listed}. Set them back, choose another --output_dir, or "
            "go on with the change by --allow_config_change"
        )
    if changes:
        logger.warning(f"settings have changed, as --allow_config_change allows: {listed}")
    if record.world_size != accelerator.num_processes:
        logger.info(f"the same images a step on {accelerator.num_processes} processes, before on {record.world_size}")
    state.restore(path if accelerator.is_main_process else None, may_start_averages=settings.allow_config_change)
    progress = record.progress
    if any(name.startswith("dataset_") for name in changes):
        progress.bad_images = {}  # of other data
    if accelerator.is_main_process:
        abandon_after(folder.checkpoints, progress.step)
    folder.begin(settings, progress.step)
    logger.info(f"going on from step {progress.step}, {progress.images_seen} images seen")
    return progress


def choose_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint that `wanted` names; None only for "latest" of a folder without checkpoints.

    Args:
        folder: the run's checkpoints.
        wanted: "latest", a step of this run, or the folder of any checkpoint. Only "latest" passes over a damaged one.

    Raises:
        ValueError: if there is no such checkpoint, or it is damaged, or another run's would hide this one's own.
    """
    sweep(folder)
    own = find_checkpoints(folder)
    if wanted == "latest":
        return newest_whole(folder)
    path = folder / f"step-{int(wanted):08d}" if wanted.isdecimal() else Path(wanted)
    if not path.is_dir():
        steps = ", ".join(str(step_of(each)) for each in own) or "none"
        raise ValueError(f"resume_from_checkpoint={wanted!r}: there is no {path}; the steps of this run are: {steps}")
    if damage := find_damage(path):
        raise ValueError(f"resume_from_checkpoint={wanted!r}: {path} is damaged ({damage}): choose another")
    if own and path.resolve().parent != folder.resolve():
        raise ValueError(
            f"resume_from_checkpoint={wanted!r} is of another run, and {folder} has checkpoints of its own, up to step "
            f"{step_of(own[-1])}: leave the setting out to go on from there, or choose another --output_dir"
        )
    return path
