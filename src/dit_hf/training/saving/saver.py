"""Saving the checkpoints of a run as it goes: one at a time, the oldest deleted, a failed one logged."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger

from ..observer import Observer
from .checkpoint import Progress, prune, write_checkpoint
from .state import TrainingState

logger = get_logger("dit_hf.training")


class CheckpointSaver:
    """Save checkpoints on the main process, while the other processes wait, and delete those beyond a limit.

    Args:
        folder: Folder of the run's checkpoints.
        accelerator: Accelerator of the run.
        total_limit: Number of newest checkpoints that stay; None keeps all.
        milestone_steps: Checkpoints whose step is a multiple of this number stay for ever.
        raises: Whether a checkpoint that cannot be written ends the run; if not, it is logged.
        observer: Observer of the run.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        total_limit: int | None = None,
        milestone_steps: int | None = None,
        raises: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.total_limit, self.milestone_steps, self.raises = total_limit, milestone_steps, raises
        self.observer = observer or Observer()
        self.settings: dict[str, Any] = {}
        self.newest_step = 0  # step of the newest checkpoint
        self._last_tried = 0  # the same on every process, as all take part in a save

    def begin(self, settings: dict[str, Any], step: int) -> None:
        """Begin to save.

        Args:
            settings: Settings of the run, written into each checkpoint.
            step: Step of the newest checkpoint; 0 if there is none.
        """
        self.settings = settings
        self.newest_step = self._last_tried = step

    def save(self, state: TrainingState, progress: Progress, keep: Collection[int] = ()) -> None:
        """Save a checkpoint, if this step has none yet. Every process has to call this.

        Args:
            state: Objects to save.
            progress: How far the training has come.
            keep: Steps whose checkpoints are not deleted, besides the newest and the milestones.

        Raises:
            OSError: If the checkpoint cannot be written, and `raises` is set.
            FloatingPointError: If a weight is not finite.
        """
        if progress.step == self._last_tried:
            return
        self._last_tried = progress.step
        snapshot = state.snapshot()
        if self.accelerator.is_main_process:
            try:
                with self.observer.phase("save"):
                    write_checkpoint(self.folder, snapshot, progress, self.settings, self.accelerator.num_processes)
                self.newest_step = progress.step
                logger.info(f"saved step {progress.step}")
                with self.observer.phase("delete"):
                    prune(self.folder, self.total_limit, self.milestone_steps, keep)
            except OSError as error:
                message = f"checkpoint {progress.step} failed: {error.strerror or error}"
                if self.raises:
                    raise OSError(error.errno, message) from error
                logger.error(f"{message}. The training goes on; the newest is that of step {self.newest_step}")
        self.accelerator.wait_for_everyone()
