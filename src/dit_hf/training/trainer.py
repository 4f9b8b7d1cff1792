"""What happens between two steps: metrics, checkpoints, previews and pushes when they are due, and the end."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from tqdm import tqdm

from .feed import BatchFeed
from .loop import StepRecord
from .processes.launch import any_process
from .processes.signals import Preempted, StopRequest
from .reporting.announcement import Forecast
from .reporting.distances import Distance
from .reporting.metrics import Meter
from .reporting.run_folder import RunFolder
from .saving.checkpoint import Progress
from .saving.state import TrainingState
from .settings import TrainSettings

logger = get_logger("dit_hf.training")


class Push(Protocol):
    """What a trainer needs of `dit_hf.hub.background.BackgroundPush`."""

    @property
    def is_busy(self) -> bool: ...
    def push_checkpoint(self, pipeline: Any, output_dir: Path, step: int) -> None: ...
    def start(self, folder: Path, message: str) -> None: ...
    def wait(self) -> str | None: ...
    def check_arrived(self) -> None: ...


class Stream(Protocol):
    """What a trainer needs of `dit_hf.data.streaming.ImageStream`."""

    bad_images: dict[str, str]

    def check_bad_images(self) -> None: ...


@dataclass
class Trainer:
    """Everything that a run works with while it trains."""

    settings: TrainSettings
    accelerator: Accelerator
    folder: RunFolder
    stop: StopRequest
    state: TrainingState
    pipeline: DiffusionPipeline | None  # on the main process only
    push: Push | None
    meter: Meter
    distance: Distance | None
    stream: Stream
    feed: BatchFeed
    early_end: str | None = None  # why the training ended before its last step

    def refresh_pipeline(self) -> None:
        """Load the average of a model that is split into the pipeline; the pipeline shares one that is whole."""
        if self.state.ema.is_sharded:
            average = self.state.ema.gather(self.settings.ema_decay, self.state.model)
            if self.pipeline is not None:
                self.pipeline.transformer.load_state_dict(average)

    def draw_before(self) -> None:
        """Draw a preview of the model that a fine-tuning starts from, to be compared with those of later steps."""
        self.refresh_pipeline()
        self.folder.preview(self.pipeline, 0, lambda: bool(self.stop))

    def train(self, progress: Progress, records: Iterator[StepRecord]) -> None:
        """Take steps from the loop, and write metrics, checkpoints and previews at their intervals.

        Args:
            progress: How far the training had come before.
            records: Endless records of `train_steps`.

        Raises:
            Preempted: If any process is asked to stop, after the step that runs and a checkpoint.
        """
        settings, folder, meter = self.settings, self.folder, self.meter
        is_main = self.accelerator.is_main_process
        bar = tqdm(
            desc="train", total=settings.max_train_steps, initial=progress.step, disable=not is_main, mininterval=1
        )
        deadline = time.monotonic() + 60 * (settings.max_train_minutes or math.inf)
        forecast = Forecast(settings.max_train_steps, settings.max_train_minutes)
        first_step, bad_in_a_row = progress.step, 0
        meter.start()
        while True:
            is_done = progress.step >= settings.max_train_steps
            if not (is_done or self.stop):
                self.feed.fetch()
            flags = [bool(self.stop), time.monotonic() > deadline, self.feed.error is not None]
            is_stopped, is_late, is_broken = any_process(self.accelerator, flags)
            if is_done or is_stopped or is_late or is_broken:
                break
            record = self._next_record(progress, records)
            bad_in_a_row = bad_in_a_row + 1 if record.bad_ranks is not None else 0
            skipped = progress.skipped_steps + (record.bad_ranks is not None)
            progress = Progress(record.step, record.images_seen, *record.position, skipped, progress.bad_images)
            meter.add(record)
            if bad_in_a_row:
                self._log_skipped_step(record, bad_in_a_row)
            bar.update()
            forecast.add(progress.step)
            self._share_bad_images(progress)
            if record.step % settings.logging_steps == 0:
                self._log(progress, bar)
            if record.step % settings.checkpointing_steps == 0:
                with meter.paused():
                    self._checkpoint_and_push(progress)
            if record.step % settings.validation_steps == 0:
                with meter.paused():
                    self._preview(progress)
            folder.observer.on_step(record)
        has_trained = progress.step > first_step
        if has_trained:
            if meter.records and not is_stopped:
                self._log(progress, bar)
            self._checkpoint(progress)
        elif is_done:
            logger.info(
                f"nothing to do: the training in {folder.path} is finished, at step {progress.step} of "
                f"{settings.max_train_steps}"
            )
        if is_late and not (is_done or is_stopped or is_broken):
            self.early_end = (
                f"max_train_minutes={settings.max_train_minutes:g} ended the training at step {progress.step} of "
                f"{settings.max_train_steps}: the same command goes on"
            )
            logger.warning(self.early_end)
        bar.close()
        if is_stopped:
            raise Preempted(f"asked to stop, the newest checkpoint is that of step {folder.checkpoints.newest_step}")
        if is_broken:
            self._raise_data_error(progress)
        if has_trained and progress.step % settings.validation_steps:
            self._preview(progress)

    def _next_record(self, progress: Progress, records: Iterator[StepRecord]) -> StepRecord:
        """Take the next step.

        Raises:
            MemoryError: If the step does not fit the memory, naming what to change.
        """
        try:
            return next(records)
        except (MemoryError, RuntimeError) as error:
            if explained := self._explain_memory(error, progress):
                raise explained from error
            raise

    def _raise_data_error(self, progress: Progress) -> None:
        """Raise what ended the data of any process, as an error of one line."""
        error = self.feed.error
        if error is None:
            raise OSError("the data of another process have ended with an error, which that process names")
        if explained := self._explain_memory(error, progress):
            raise explained from error
        if isinstance(error, OSError | ValueError):
            raise error
        position = f"(epoch, offset) ({progress.epoch}, {progress.offset})"
        raise OSError(f"the data cannot be read after {position}: {error!r}") from error

    def _explain_memory(self, error: Exception, progress: Progress) -> MemoryError | None:
        """Return an error that says what to change, if memory ran out; else None."""
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not is_memory:
            return None
        config: Any = self.state.model.config
        shape = (self.settings.train_batch_size, config.in_channels, *config.sample_height_width)
        saving = "" if self.settings.gradient_checkpointing else ", or set --gradient_checkpointing"
        return MemoryError(
            f"out of memory in step {progress.step + 1}, latents {shape} on {self.accelerator.device}: lower "
            f"--train_batch_size and raise --gradient_accumulation_steps by as much{saving}. "
            f"The newest checkpoint is that of step {self.folder.checkpoints.newest_step}. {error}"
        )

    def _log_skipped_step(self, record: StepRecord, in_a_row: int) -> None:
        """Log a step that was skipped, with this process's samples if its loss was not finite.

        Raises:
            FloatingPointError: If too many steps in a row were skipped.
        """
        here = self.accelerator.process_index
        culprit = f"the loss on ranks {record.bad_ranks}" if record.bad_ranks else "the gradient"
        message = f"step {record.step} was skipped: {culprit} is not finite"
        if here in (record.bad_ranks or [here]):
            samples = ", ".join(f"({epoch}, {offset})" for epoch, offset in record.samples[:32])
            message += f"; loss={record.losses['loss'].item()}, (epoch, offset) on rank {here}: {samples}"
        if in_a_row >= self.settings.max_skipped_steps:
            raise FloatingPointError(
                f"{message}. It is number {in_a_row} in a row: lower --learning_rate, or set --max_grad_norm 1. "
                f"The newest checkpoint is that of step {self.folder.checkpoints.newest_step}"
            )
        logger.warning(message, main_process_only=False)

    def _share_bad_images(self, progress: Progress) -> None:
        """Record the images that any process has skipped in the progress. Every process has to call this.

        Raises:
            ValueError: If all processes together have skipped too many.
        """
        if any_process(self.accelerator, [len(self.stream.bad_images) > len(progress.bad_images)])[0]:
            progress.bad_images = dict(sorted(gather_object(list(self.stream.bad_images.items()))))
            self.stream.bad_images = dict(progress.bad_images)
            self.stream.check_bad_images()

    def _log(self, progress: Progress, bar: tqdm) -> None:
        """Write the mean metrics since the last row."""
        metrics = self.meter.read(progress.skipped_steps, len(progress.bad_images))
        self.folder.metrics.write(metrics)
        bar.set_postfix(loss=metrics["loss"], images_per_second=metrics["images_per_second"])

    def _checkpoint(self, progress: Progress) -> None:
        """Save a checkpoint; that of the best samples is not deleted."""
        self.folder.checkpoints.save(self.state, progress, keep=[self.folder.distances.best()[0]])

    def _checkpoint_and_push(self, progress: Progress) -> None:
        """Save a checkpoint, and begin to push the pipeline or the adapter; the end of a training pushes by itself."""
        self._checkpoint(progress)
        is_at_end = progress.step >= self.settings.max_train_steps
        if self.settings.push_to_hub and not is_at_end and not self.stop:
            self.refresh_pipeline()
            if self.push and self.pipeline:
                self.push.push_checkpoint(self.pipeline, self.folder.path, progress.step)

    def _preview(self, progress: Progress) -> None:
        """Draw a preview, and keep the checkpoint if its distance is the smallest so far."""
        self.refresh_pipeline()
        best = self.folder.preview(self.pipeline, progress.step, lambda: bool(self.stop), self.distance)
        if self.distance and any_process(self.accelerator, [best is not None])[0]:
            self._checkpoint(progress)
            if best is not None:
                self.folder.distances.mark_best(progress.step, best)

    def wait_for_push(self) -> None:
        """Wait for the push that runs, if one does.

        Raises:
            Preempted: If the run is asked to stop meanwhile; the push is then not finished.
        """
        while self.push and self.push.is_busy:
            if self.stop:
                raise Preempted("asked to stop during a push")
            time.sleep(0.1)
        if self.push:
            self.push.wait()
