"""Resuming a run: which checkpoint it continues from, and whether its settings still compute the same steps.

Example: a run on four processes with `train_batch_size` 8 is killed after step 1000. The same command on two processes
is refused, since a step would have 16 images instead of 32; with `--train_batch_size 16` it continues, and step 1001
has the same 32 images, the same noise and the same timesteps as it would have had on four processes.
"""

import re
from pathlib import Path

from accelerate.logging import get_logger

from ..processes.launch import on_main_process
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

CLASSES_HASH = re.compile(r"-([0-9a-f]{8})$")
logger = get_logger("dit_hf.training")


def resume(folder: Path, settings: TrainSettings, state: TrainingState) -> Progress:
    """Restore the checkpoint that the settings ask for, and return how far it had come.

    Args:
        folder: Folder of the run's checkpoints. Without a checkpoint the run begins at step 0.
        settings: Settings of the run, compared with those of the checkpoint.
        state: Objects to restore.

    Raises:
        ValueError: If the checkpoint that was asked for is missing or damaged, or if the settings would change what the
            steps compute and this is not allowed, naming each difference.
    """
    accelerator = state.accelerator
    path = on_main_process(accelerator, lambda: choose_checkpoint(folder, settings.resume_from_checkpoint))
    if path is None:
        return Progress()
    info = on_main_process(accelerator, lambda: read_info(path))
    before = dict(info.settings)
    if before.get("mixed_precision") is None:  # recorded before the launcher's was
        before["mixed_precision"] = settings.mixed_precision
    changes = changed_settings(before, settings, info.world_size, accelerator.num_processes)
    listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items())
    if "dataset_revision" in changes and "dataset_name" not in changes:
        _check_files(path, settings, *changes["dataset_revision"])
    if changes and not settings.allow_config_change:
        raise ValueError(
            f"{path} is of a training with other settings: {listed}. Set them back, choose another --output_dir, or "
            "go on with the change by --allow_config_change"
        )
    if changes:
        logger.warning(f"settings have changed, as --allow_config_change allows: {listed}")
    if info.world_size != accelerator.num_processes:
        logger.info(f"the same images a step on {accelerator.num_processes} processes, before on {info.world_size}")
    state.restore(path if accelerator.is_main_process else None, may_start_averages=settings.allow_config_change)
    progress = info.progress
    if any(name.startswith("dataset_") for name in changes):
        progress.bad_images = {}  # they were of other data
        # Positions in an epoch of other data mean nothing: the run goes on with the next epoch.
        progress.epoch, progress.offset = progress.epoch + (progress.offset > 0), 0
    if accelerator.is_main_process:
        abandon_after(folder, progress.step)
    logger.info(f"going on from step {progress.step}, {progress.images_seen} images seen")
    return progress


def _check_files(path: Path, settings: TrainSettings, before: str, now: str) -> None:
    """Refuse data whose files have changed since a checkpoint, with the remedies.

    Args:
        path: Checkpoint.
        settings: Settings of the run.
        before: Version of the data that the checkpoint was trained on.
        now: Version that was found. Some versions end with a hash of the classes, see `data.revision`.

    Raises:
        ValueError: If the classes have changed, or if other files have changed and this is not allowed.
    """
    start_anew = f"start a new training from its weights: --init_from {settings.output_dir}/pipeline --output_dir NEW"
    hashes = [match[1] for version in (before, now) if (match := CLASSES_HASH.search(version))]
    if len(set(hashes)) == 2:
        raise ValueError(
            f"{path} was trained on other classes than {settings.dataset_name} has now ({before}, {now}): put the "
            f"classes back, or {start_anew}"
        )
    if not settings.allow_config_change:
        raise ValueError(
            f"the files of {settings.dataset_name} have changed since {path}: dataset_revision was {before} and is "
            f"{now}. Put the files back, go on with the new ones from the next epoch by --allow_config_change, or "
            f"{start_anew}"
        )


def choose_checkpoint(folder: Path, wanted: str) -> Path | None:
    """Return the checkpoint that `wanted` names; None only for "latest" in a folder without checkpoints.

    Args:
        folder: Folder of the run's checkpoints.
        wanted: "latest", a step of this run, or the folder of any checkpoint. Only "latest" skips a damaged one.

    Raises:
        ValueError: If there is no such checkpoint, or it is damaged, or it is of another run and this run has
            checkpoints of its own.
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
