"""What a caller may watch of a run: an argument of `run`, whose methods are called at known moments.

class PrintSteps(Observer):
def on_step(self, record: StepRecord) -> None:
print(record.step, record.losses["loss"].item())

run(settings, observer=PrintSteps())
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from .loop import Draws, LatentBatch, StepRecord

Phase = Literal["start", "save", "delete", "preview", "finish"]


class Observer:
    """Watch a run: override what matters and pass an object of the class to `run`; each method does nothing here.

    The methods are called on every process, in the thread of the training. What a method raises ends the run.
    """

    def on_begin(self, phase: Phase) -> None:
        """Be called before the run is put together, and before each save, deletion and preview, and the finish."""

    def on_end(self, phase: Phase) -> None:
        """Be called after a phase that ended without an error."""

    def on_model(self, model: torch.nn.Module) -> None:
        """Be called with the model as Accelerate has wrapped it, before the first step."""

    def on_batch(self, batch: LatentBatch, draws: Draws) -> None:
        """Be called within a step, with a batch and its random draws, before the forward."""

    def on_step(self, record: StepRecord) -> None:
        """Be called after a step, and after what was due at this step is written."""

    def on_disk(self, operation: str, path: Path) -> None:
        """Be called before each operation that writes a checkpoint, the pipeline, or another whole file.

        Args:
            operation: Name of the operation: "create", "write", "flush", "rename" or "delete".
            path: File or folder that the operation changes.
        """

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Call `on_begin` before the block, and `on_end` after it if it raises no error."""
        self.on_begin(phase)
        yield
        self.on_end(phase)


def watched_draws(draw: Callable[[LatentBatch], Draws], observer: Observer) -> Callable[[LatentBatch], Draws]:
    """Return `draw` with the observer called after it, with the batch and its draws."""

    def draw_and_show(batch: LatentBatch) -> Draws:
        draws = draw(batch)
        observer.on_batch(batch, draws)
        return draws

    return draw_and_show
