"""Experiment trackers: TensorBoard, wandb, trackio, and others that Accelerate knows."""

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ...files import write_text
from .previews import make_grid


def start_trackers(
    accelerator: Accelerator, output_dir: Path, settings: dict[str, Any], step: int, *, is_new_run: bool
) -> None:
    """Begin a run of each tracker, or continue the run whose id is in `logs/run_id`.

    TensorBoard hides what was logged after the step that the training goes back to. The other trackers keep it, and so
    a training that goes back on request is a new run for them.

    Args:
        accelerator: Accelerator that was made with the trackers' names.
        output_dir: Folder of the run.
        settings: Settings of the run, which the trackers show.
        step: Step that the training continues after.
        is_new_run: Whether to begin a run although an id is there.
    """
    file = output_dir / "logs" / "run_id"
    if is_new_run or not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_text(file, secrets.token_hex(4))
    name, run_id = output_dir.resolve().name, file.read_text()
    run_options = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": name, "id": run_id, "dir": os.environ.get("WANDB_DIR", file.parent), "resume": "allow"},
        "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
    }
    shown = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()}
    accelerator.init_trackers("dit", config=shown, init_kwargs=run_options)


def log_images(accelerator: Accelerator, images: list[Image.Image], step: int) -> None:
    """Pass the images of a preview to the trackers, to each in the form that it takes."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":  # takes one array
            array = np.stack([np.asarray(image) for image in images])  # (N, H, W, 3)
            tracker.log_images({"preview": array}, step=step, dataformats="NHWC")
        elif tracker.name == "trackio":  # takes one picture, of its own type
            import trackio

            tracker.log({"preview": trackio.Image(make_grid(images))}, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"preview": images}, step=step)
