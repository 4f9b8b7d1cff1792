"""The output folder of a run: one object for each thing that a run writes there, and the beginning of a run."""

from collections.abc import Callable
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import DiffusionPipeline

from ...files import write_text
from ..observer import Observer
from ..saving.saver import CheckpointSaver
from ..settings import TrainSettings
from .distances import Distance, DistanceLog
from .metrics import MetricsLog, cut_after
from .previews import Previews
from .status import StatusFile
from .trackers import log_images, start_trackers

logger = get_logger("dit_hf.training")


class RunFolder:
    """What a run writes; files that all processes would share are written by the main process alone.

    Args:
        settings: Settings of the run, which are divided among the parts here.
        accelerator: Accelerator of the run.
        observer: Observer of the run.
    """

    def __init__(self, settings: TrainSettings, accelerator: Accelerator, observer: Observer | None = None) -> None:
        self.path, self.accelerator = Path(settings.output_dir), accelerator
        self.observer = observer or Observer()
        self.has_begun = False  # a run that is refused leaves the folder as it is
        self.status = StatusFile(self.path / "status.json")
        self.metrics = MetricsLog(self.path / "metrics.jsonl", accelerator)
        self.distances = DistanceLog(self.path, accelerator)
        self.previews = Previews(
            self.path / "previews",
            labels=settings.validation_labels,
            guidance_scale=settings.guidance_scale,
            num_inference_steps=settings.validation_inference_steps,
            seed=settings.seed,
        )
        self.checkpoints = CheckpointSaver(
            self.path / "checkpoints",
            accelerator,
            total_limit=settings.checkpoints_total_limit,
            milestone_steps=settings.checkpoints_milestone_steps,
            raises=settings.stop_on_failed_checkpoint,
            observer=self.observer,
        )

    def begin(self, settings: TrainSettings, step: int = 0) -> None:
        """Write the settings and the status, start the trackers, and remove rows of steps that are done again.

        Args:
            settings: Settings of the run, with the revision of the data set that was found.
            step: Step that the run continues after.
        """
        self.has_begun = True
        recorded = settings.to_dict()
        self.checkpoints.begin(recorded, step)
        if not self.accelerator.is_main_process:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if self.status.read().get("state") == "running":  # and this run holds the folder
            logger.warning("the run before this one did not end by itself: it was killed, or its machine was lost")
        write_text(self.path / "settings.yaml", yaml.safe_dump(recorded, sort_keys=False))
        for file in (self.metrics.file, self.distances.file):
            cut_after(file, step)
        if self.distances.best()[0] > step:
            self.distances.best_file.unlink()
        self.status.write("running", step=step)
        if self.accelerator.log_with:
            is_new_run = step == 0 or settings.resume_from_checkpoint != "latest"
            start_trackers(self.accelerator, self.path, recorded, step, is_new_run=is_new_run)

    def preview(
        self,
        pipeline: DiffusionPipeline | None,
        step: int,
        is_stopped: Callable[[], bool],
        distance: Distance | None = None,
    ) -> float | None:
        """Draw samples on the main process and report them, while the other processes wait.

        Args:
            pipeline: Pipeline with the weights of the step; None on the other processes.
            step: Step of the weights.
            is_stopped: Asked between the steps of the sampler; the preview is left out as soon as it is true.
            distance: Distance of the samples to a reference.

        Returns:
            The distance, on the main process if it is the smallest so far; else None.
        """
        smallest = None
        if pipeline is not None:
            with self.observer.phase("preview"):
                images = self.previews.draw_and_save(pipeline, step, is_stopped)
            if images is not None:
                log_images(self.accelerator, images, step)
                smallest = self.distances.measure(distance, images, step) if distance else None
        self.accelerator.wait_for_everyone()
        return smallest
