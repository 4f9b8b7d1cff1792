"""The numbers of a run: means of the losses between two rows of `metrics.jsonl`, the speed, and the file."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ...files import write_text
from ..loop import StepRecord
from .tolerance import tolerating


class Meter:
    """Means of the losses since the last reading, over all processes, and images per second.

    Args:
        accelerator: Accelerator whose processes share the images.
        flops_per_image: Floating-point operations of one image's step.
        peak_flops: Operations per second that one device promises, or None if they are not known.
    """

    def __init__(self, accelerator: Accelerator, flops_per_image: int, peak_flops: float | None) -> None:
        self.accelerator, self.flops_per_image, self.peak_flops = accelerator, flops_per_image, peak_flops
        self.records: list[StepRecord] = []
        self.started = time.monotonic()

    def start(self) -> None:
        """Count time from here on: the training has been set up."""
        self.started = time.monotonic()

    def add(self, record: StepRecord) -> None:
        """Count a step."""
        self.records.append(record)

    def read(self, skipped_steps: int, images_skipped: int) -> dict[str, Any]:
        """Return the row of `metrics.jsonl` for the last step, and begin anew. Every process has to call this.

        Steps that were skipped are left out of the means, if there is another one.

        Args:
            skipped_steps: Number of steps so far whose loss or gradient was not finite.
            images_skipped: Number of images so far that could not be decoded.
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
            **last.learning_rates,
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
        self.start()
        return metrics

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that previews and checkpoints take."""
        before = time.monotonic()
        yield
        self.started += time.monotonic() - before


class MetricsLog:
    """The file `metrics.jsonl`, one JSON object a line, and the trackers; the main process alone writes."""

    def __init__(self, file: Path, accelerator: Accelerator) -> None:
        self.file, self.accelerator = file, accelerator

    def write(self, metrics: dict[str, Any]) -> None:
        """Append a row to the file, and pass its numbers to the trackers."""
        if self.accelerator.is_main_process:
            numbers = {name: value for name, value in metrics.items() if name != "step" and value is not None}
            with tolerating(f"metrics of step {metrics['step']}"):
                append_row(self.file, metrics)
                self.accelerator.log(numbers, step=metrics["step"])


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Append a JSON object to a file, as one line."""
    with file.open("a") as opened:
        opened.write(json.dumps(row) + "\n")


def cut_after(file: Path, step: int) -> None:
    """Remove the rows after a step from a file of JSON lines, and the last line if a kill has torn it."""
    if file.exists():
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_text(file, "".join(line for line in whole if json.loads(line)["step"] <= step))
