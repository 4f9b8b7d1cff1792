"""Many images in files, drawn by any number of processes; a run that was killed goes on by the same call.

Image k depends on the seed and k alone: neither the number of processes nor an interruption changes it, and another
batch size changes it by the rounding of floats only.
Legend: N images, B images of a batch, H and W their height and width.
"""

import hashlib
import json
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..distributed import start_inference_accelerator
from ..files import write_text
from .batches import Sampler, check_draws, indices_of_batch, iterate_batches
from .outputs import NpzFile, PngFolder, open_output


def generate_images(
    sample: Sampler,
    output: str | Path,
    num_images: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    settings: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> Path:
    """Draw N images into a folder of PNGs or ADM's `.npz`; the same call goes on where a killed run stopped.

    Every process of a launcher calls this function and draws its share. Each holds one batch in memory at a time.

    Args:
        sample: Function that draws one batch.
        output: New folder, or file that ends in `.npz`. While the file is merged, it takes its size twice on the disk.
        num_images: Number of images N.
        labels: Class of each image, or None for an unconditional model.
        seed: Seed of the run, from which each image's own generator is made.
        batch_size: Number of images B that each process draws at once.
        settings: All else that the images depend on; it is written to the JSON file beside them.
        accelerator: Processes of the launcher. Default: `start_inference_accelerator()`.

    Returns:
        The folder or file.

    Raises:
        ValueError: If an argument is outside its limits, or if the output was begun with other settings.
    """
    check_draws(num_images, labels, seed, batch_size)
    accelerator = accelerator or start_inference_accelerator()
    target = open_output(Path(output), num_images)
    if accelerator.is_main_process:
        digest = None if labels is None else hashlib.sha256(np.asarray(labels, dtype="<i8").tobytes()).hexdigest()
        draws = {"num_images": num_images, "seed": seed, "batch_size": batch_size, "labels_sha256": digest}
        environment = {"torch": torch.__version__, "device": accelerator.device.type, "machine": platform.machine()}
        target.start()
        _check_settings(target.settings_file, {**(settings or {}), **draws}, environment)
    accelerator.wait_for_everyone()
    _draw_missing(sample, target, labels, seed, batch_size, accelerator)
    accelerator.wait_for_everyone()
    return target.finish(labels) if accelerator.is_main_process else target.path


def _check_settings(file: Path, settings: dict[str, Any], environment: dict[str, Any]) -> None:
    """Write the settings, or compare them with those that the images in the output were drawn with."""
    settings, environment = json.loads(json.dumps([settings, environment]))  # as a file gives them: tuples are lists
    if not file.exists():
        write_text(file, json.dumps({"settings": settings, "environment": environment}, indent=2) + "\n")
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    if changes := _describe_changes(begun["settings"], settings):
        raise ValueError(f"{file} was begun with other settings ({changes}): use those, or another output")
    if changes := _describe_changes(begun["environment"], environment):
        warnings.warn(f"going on elsewhere than begun, images may round otherwise: {changes}", stacklevel=3)


def _describe_changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in names)


def _draw_missing(
    sample: Sampler,
    target: PngFolder | NpzFile,
    labels: Sequence[int] | None,
    seed: int,
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    """Draw the batches of this process that the output lacks. Batch p belongs to the process p mod their number."""
    num_processes, num_images = accelerator.num_processes, target.num_images
    options: dict[str, Any] = {"labels": labels, "seed": seed, "batch_size": batch_size}
    with tqdm(total=num_images, unit="image", disable=not accelerator.is_main_process) as bar:
        for number in range(accelerator.process_index, -(-num_images // batch_size), num_processes):
            indices = indices_of_batch(number, num_images, batch_size)
            # All processes are about as far: count their batches of the same round too.
            round_end = min((number + num_processes) * batch_size, num_images)
            if target.holds(indices):
                bar.initial = bar.n = round_end
                bar.refresh()
                continue
            [images] = iterate_batches(sample, num_images, batches=[number], **options)
            target.write(indices, images)
            bar.update(round_end - indices.start)
