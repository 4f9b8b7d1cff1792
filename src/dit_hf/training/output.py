"""What a run writes while it goes: metrics, previews, checkpoints and their folder."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from torch import Tensor

from .checkpoint import Progress, TrainingState, save_checkpoint
from .loop import StepRecord
from .settings import TrainSettings


def save_samples(pipeline: DiffusionPipeline, path: Path, settings: TrainSettings) -> None:
    """A grid of images of the EMA model, from noise that is the same at every step."""
    config = pipeline.transformer.config
    labels = settings.validation_labels or list(range(min(config.num_classes, 16)))
    what = {"class_labels": labels} if config.num_classes else {"num_images": 16}
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        **what,
        guidance_scale=settings.guidance_scale if config.has_null_class else 1,
        num_inference_steps=settings.validation_inference_steps,
        generator=torch.Generator(pipeline.device).manual_seed(settings.seed),
    ).images
    rows = next(rows for rows in range(int(len(images) ** 0.5), 0, -1) if len(images) % rows == 0)
    path.parent.mkdir(exist_ok=True)
    make_image_grid(images, rows=rows, cols=len(images) // rows).save(path)


class Meter:
    """Means of the losses since the last reading, over all processes, and the speed."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.losses: list[dict[str, Tensor]] = []
        self.grad_norms: list[Tensor] = []
        self.started = time.monotonic()

    def add(self, record: StepRecord) -> None:
        """Count a step."""
        self.losses.append(record.losses)
        self.grad_norms.append(record.grad_norm)

    def read(self, record: StepRecord) -> dict[str, Any]:
        """The row of `metrics.jsonl` of this step; every process has to ask for it."""
        means = {name: torch.stack([each[name] for each in self.losses]).mean() for name in self.losses[0]}
        means = self.accelerator.reduce(means, "mean")
        losses = {name: value.item() for name, value in means.items()}
        seconds = time.monotonic() - self.started
        metrics = {
            "step": record.step,
            "epoch": record.position[0],
            "images_seen": record.images_seen,
            **losses,
            "learning_rate": record.learning_rate,
            "grad_norm": torch.stack(self.grad_norms).mean().item(),
            "images_per_second": len(self.losses) * record.images_seen / record.step / seconds,
        }
        self.losses, self.grad_norms = [], []
        self.restart_clock()
        return metrics

    def restart_clock(self) -> None:
        """Leave out the time that went into previews and checkpoints."""
        self.started = time.monotonic()


class RunFolder:
    """What a run writes: settings, metrics, status, previews and checkpoints; only the main process writes."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator
        self.checkpoints = path / "checkpoints"

    def begin(self, settings: TrainSettings, step: int = 0) -> None:
        """Write the settings, start the trackers, and cut the metrics back to the step that the run goes on from."""
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "settings.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False))
            metrics = self.path / "metrics.jsonl"
            lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
            whole = [line for line in lines if line.endswith("\n")]  # a kill may have torn the last
            metrics.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
            self.write_status("running")
        flat = {name: str(value) for name, value in dataclasses.asdict(settings).items()}
        self.accelerator.init_trackers("dit", config=flat)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a row to `metrics.jsonl`."""
        if self.accelerator.is_main_process:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")

    def checkpoint(self, state: TrainingState, progress: Progress, settings: TrainSettings) -> None:
        """Save a checkpoint on the main process, while the others wait."""
        if self.accelerator.is_main_process:
            limit = settings.checkpoints_total_limit
            save_checkpoint(self.checkpoints, state, progress, dataclasses.asdict(settings), limit)
        self.accelerator.wait_for_everyone()

    def preview(self, pipeline: DiffusionPipeline, step: int, settings: TrainSettings) -> None:
        """Draw samples on the main process, while the others wait."""
        if self.accelerator.is_main_process:
            save_samples(pipeline, self.path / "previews" / f"step-{step:08d}.png", settings)
        self.accelerator.wait_for_everyone()

    def write_status(self, state: str) -> None:
        """Say in `status.json` what the run is doing."""
        (self.path / "status.json").write_text(json.dumps({"state": state, "pid": os.getpid(), "time": time.time()}))
