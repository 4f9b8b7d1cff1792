"""What a run writes while it goes: metrics, previews, checkpoints and their folder.

Only the main process writes. What cannot be written, for want of room or right, is told and does not end the training.
"""

import contextlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor

from ...files import write_text
from ..loop import StepRecord
from ..saving.checkpoint import Progress, prune, write_checkpoint
from ..saving.state import TrainingState
from ..settings import TrainSettings

logger = get_logger("dit_hf.training")

Distance = Callable[[list[Image.Image]], float]  # of samples to a reference; less is better


class PreviewStopped(Exception):
    """The run was asked to stop while it drew samples."""


def draw_preview_images(
    pipeline: DiffusionPipeline, settings: TrainSettings, is_stopped: Callable[[], bool] = lambda: False
) -> list[Image.Image]:
    """Images of the pipeline's model, from noise that is the same at every step.

    Raises:
        PreviewStopped: as soon as `is_stopped` says so.
    """

    def check(pipeline: DiffusionPipeline, step: int, timestep: Any, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        if is_stopped():
            raise PreviewStopped
        return latents

    config = pipeline.transformer.config
    labels = settings.validation_labels or list(range(min(config.num_classes, 16)))
    what = {"class_labels": labels} if config.num_classes else {"num_images": 16}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        **what,
        guidance_scale=settings.guidance_scale if config.has_null_class else 1,
        num_inference_steps=settings.validation_inference_steps,
        generator=torch.Generator(pipeline.device).manual_seed(settings.seed),
        callback_on_step_end=check,
    ).images


def save_grid(images: list[Image.Image], path: Path) -> None:
    """Write images as one."""
    path.parent.mkdir(exist_ok=True)
    make_grid(images).save(path)


def make_grid(images: list[Image.Image]) -> Image.Image:
    """Images as one, as near to a square as their number allows."""
    rows = next(rows for rows in range(int(len(images) ** 0.5), 0, -1) if len(images) % rows == 0)
    return make_image_grid(images, rows=rows, cols=len(images) // rows)


class Meter:
    """Means of the losses since the last reading, over all processes, and the speed.

    Args:
        accelerator: whose processes share the images.
        flops_per_image: of a step.
        peak_flops: of one device, or None if it is not known.
    """

    def __init__(self, accelerator: Accelerator, flops_per_image: int, peak_flops: float | None) -> None:
        self.accelerator, self.flops_per_image, self.peak_flops = accelerator, flops_per_image, peak_flops
        self.records: list[StepRecord] = []
        self.started = time.monotonic()

    def add(self, record: StepRecord) -> None:
        """Count a step."""
        self.records.append(record)

    def read(self, skipped_steps: int, images_skipped: int) -> dict[str, Any]:
        """The row of `metrics.jsonl` of the last step; every process has to ask for it.

        Steps that were passed over are left out of the means, unless there is no other.
        """
        last, seconds = self.records[-1], time.monotonic() - self.started
        counted = [record for record in self.records if record.bad_ranks is None] or self.records
        means = {name: torch.stack([each.losses[name] for each in counted]).mean() for name in last.losses}
        means = self.accelerator.reduce(means, "mean")
        quartiles = self.accelerator.reduce(torch.stack([each.quartiles for each in counted]).sum(0), "sum").tolist()
        images_per_second = len(self.records) * last.images_seen / last.step / seconds
        metrics = {
            "step": last.step,
            "epoch": last.position[0],
            "images_seen": last.images_seen,
            **{name: value.item() for name, value in means.items()},
            **{
                f"loss_quartile_{number}": total / count if count else None
                for number, (total, count) in enumerate(quartiles, 1)
            },
            "learning_rate": last.learning_rate,
            "grad_norm": torch.stack([each.grad_norm for each in counted]).mean().item(),
            "skipped_steps": skipped_steps,
            "images_skipped": images_skipped,
            "images_per_second": images_per_second,
        }
        metrics = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        if self.peak_flops:
            promised = self.peak_flops * self.accelerator.num_processes
            metrics["share_of_peak"] = images_per_second * self.flops_per_image / promised
        self.records = []
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
        self.has_begun = False  # a run that is refused leaves the folder as it is
        self.last_saved = 0  # step of the newest checkpoint
        self._last_tried = 0  # the same on every process, as all take part in a save

    def begin(self, settings: TrainSettings, step: int = 0) -> None:
        """Write the settings, start the trackers, and cut the metrics back to the step that the run goes on from."""
        self.has_begun = True
        self.last_saved = self._last_tried = step
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "settings.yaml", yaml.safe_dump(settings.to_dict(), sort_keys=False))
            for name in ("metrics.jsonl", "distances.jsonl"):
                cut_after(self.path / name, step)
            if self.best()[0] > step:
                (self.path / "best.json").unlink()
            self.write_status("running", step=step)
            if self.accelerator.log_with:
                self._start_trackers(settings, step)

    def _start_trackers(self, settings: TrainSettings, step: int) -> None:
        """Begin a run of each tracker, or go on with the one that was begun.

        What was logged after a step that the training goes back to is hidden by TensorBoard. The others keep it: there,
        going back by request is a new run.
        """
        file = self.path / "logs" / "run_id"
        if step == 0 or settings.resume_from_checkpoint != "latest" or not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_text(file, secrets.token_hex(4))
        name, run_id = self.path.resolve().name, file.read_text()
        same = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"name": name, "id": run_id, "dir": os.environ.get("WANDB_DIR", file.parent), "resume": "allow"},
            "trackio": {"name": f"{name}-{run_id}", "resume": "allow"},
        }
        config = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in settings.to_dict().items()
        }
        self.accelerator.init_trackers("dit", config=config, init_kwargs=same)

    @contextlib.contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Tell of what cannot be written, and go on."""
        try:
            yield
        except OSError as error:
            logger.error(f"{what} failed: {error.strerror or error}. The training goes on")

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a row to `metrics.jsonl`, and tell the trackers."""
        if self.accelerator.is_main_process:
            numbers = {name: value for name, value in metrics.items() if name != "step" and value is not None}
            with self.tolerating(f"metrics of step {metrics['step']}"):
                with (self.path / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(metrics) + "\n")
                self.accelerator.log(numbers, step=metrics["step"])

    def checkpoint(self, state: TrainingState, progress: Progress, settings: TrainSettings) -> None:
        """Save a checkpoint on the main process, while the others wait, and delete those beyond the limit.

        Raises:
            OSError: if it cannot be written, and the settings say to stop then.
            FloatingPointError: if a weight is not finite.
        """
        if progress.step == self._last_tried:
            return
        self._last_tried = progress.step
        snapshot = state.snapshot()
        if self.accelerator.is_main_process:
            processes = self.accelerator.num_processes
            try:
                write_checkpoint(self.checkpoints, snapshot, progress, settings.to_dict(), processes)
                limit, milestones = settings.checkpoints_total_limit, settings.checkpoints_milestone_steps
                prune(self.checkpoints, limit, milestones, keep=[self.best()[0]])
                self.last_saved = progress.step
            except OSError as error:
                message = f"checkpoint {progress.step} failed: {error.strerror or error}"
                if settings.stop_on_failed_checkpoint:
                    raise OSError(error.errno, message) from error
                logger.error(f"{message}. The training goes on; the newest is that of step {self.last_saved}")
        self.accelerator.wait_for_everyone()

    def preview(
        self,
        pipeline: DiffusionPipeline | None,
        step: int,
        settings: TrainSettings,
        is_stopped: Callable[[], bool],
        distance: Distance | None = None,
    ) -> float | None:
        """Draw samples on the main process, while the others wait.

        Args:
            pipeline: None on the other processes.
            step: of the weights.
            settings: of the run.
            is_stopped: leaves the preview out as soon as it is true.
            distance: of the samples to a reference.

        Returns:
            The distance, on the main process if it is the smallest so far; else None.
        """
        best = None
        if pipeline is not None:
            try:
                images = draw_preview_images(pipeline, settings, is_stopped)
            except PreviewStopped:
                logger.info(f"no preview of step {step}: the run was asked to stop")
            except FloatingPointError as error:
                logger.error(f"no preview of step {step}: {error}. The training goes on")
            else:
                with self.tolerating(f"preview of step {step}"):
                    save_grid(images, self.path / "previews" / f"step-{step:08d}.png")
                self._track(images, step)
                if distance:
                    best = self._measure(distance, images, step)
        self.accelerator.wait_for_everyone()
        return best

    def best(self) -> tuple[int, float]:
        """Step and distance of the best samples so far; (-1, inf) before the first."""
        file = self.path / "best.json"
        told = json.loads(file.read_text()) if file.exists() else {}
        return told.get("step", -1), told.get("distance", math.inf)

    def mark_best(self, step: int, distance: float) -> None:
        """Remember a checkpoint as the best, which is not deleted before a better one is saved."""
        with self.tolerating("best.json"):
            write_text(self.path / "best.json", json.dumps({"step": step, "distance": distance}))

    def write_status(self, state: str, **more: Any) -> None:
        """Say in `status.json` what the run is doing."""
        told = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), **more}
        with self.tolerating("status"):
            write_text(self.path / "status.json", json.dumps(told))

    def _track(self, images: list[Image.Image], step: int) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":  # takes one array
                tracker.log_images(
                    {"preview": np.stack([np.asarray(image) for image in images])}, step=step, dataformats="NHWC"
                )
            elif tracker.name == "trackio":  # takes one picture, of its own type
                import trackio

                tracker.log({"preview": trackio.Image(make_grid(images))}, step=step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"preview": images}, step=step)

    def _measure(self, distance: Distance, images: list[Image.Image], step: int) -> float | None:
        try:
            value = float(distance(images))
        except Exception as error:  # noqa: BLE001 - a user's code, which shall not end a training
            logger.error(f"no distance of step {step}: {error!r}. The training goes on")
            return None
        if not math.isfinite(value):
            logger.error(f"the distance of step {step} is {value}: it is left out. The training goes on")
            return None
        with self.tolerating("distance"):
            with (self.path / "distances.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "distance": value}) + "\n")
            self.accelerator.log({"distance": value}, step=step)
        return value if value < self.best()[1] else None


def cut_after(file: Path, step: int) -> None:
    """Leave out of a file of JSON lines what comes after a step, and the last line if a kill has torn it."""
    if file.exists():
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_text(file, "".join(line for line in whole if json.loads(line)["step"] <= step))
