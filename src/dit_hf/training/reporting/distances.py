"""Distances of the previews to a reference, by a function of the user, and which checkpoint has the smallest one."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image

from ...files import write_text
from .metrics import append_row
from .tolerance import tolerating

logger = get_logger("dit_hf.training")

Distance = Callable[[list[Image.Image]], float]  # of samples to a reference; less is better


class DistanceLog:
    """The files `distances.jsonl`, one row a preview, and `best.json`, the step whose samples were nearest so far."""

    def __init__(self, output_dir: Path, accelerator: Accelerator) -> None:
        self.file, self.best_file, self.accelerator = (
            output_dir / "distances.jsonl",
            output_dir / "best.json",
            accelerator,
        )

    def measure(self, distance: Distance, images: list[Image.Image], step: int) -> float | None:
        """Write the distance of a step's samples, and return it if it is the smallest so far, else None.

        A distance that fails or is not finite is logged and left out.
        """
        try:
            value = float(distance(images))
        except Exception as error:  # noqa: BLE001 - a user's code, which shall not end a training
            logger.error(f"no distance of step {step}: {error!r}. The training goes on")
            return None
        if not math.isfinite(value):
            logger.error(f"the distance of step {step} is {value}: it is left out. The training goes on")
            return None
        with tolerating(f"distance of step {step}"):
            append_row(self.file, {"step": step, "distance": value})
            self.accelerator.log({"distance": value}, step=step)
        return value if value < self.best()[1] else None

    def best(self) -> tuple[int, float]:
        """Return the step and the distance of the best samples so far; (-1, inf) before the first."""
        content = json.loads(self.best_file.read_text()) if self.best_file.exists() else {}
        return content.get("step", -1), content.get("distance", math.inf)

    def mark_best(self, step: int, distance: float) -> None:
        """Remember a checkpoint as the best, which is not deleted before a better one is saved."""
        with tolerating("best.json"):
            write_text(self.best_file, json.dumps({"step": step, "distance": distance}))
