"""What a training says about itself: what it is about to do, and once its speed is known, how long it takes."""

import time
from typing import Any

from accelerate.logging import get_logger

from ..settings import TrainSettings
from ..settings.compare import images_a_step

logger = get_logger("dit_hf.training")

FIRST_STEPS = 5  # after which the time is estimated; the first one also compiles and fills caches, and does not count


def announce(settings: TrainSettings, model: Any, flops_per_image: int, num_processes: int, step: int) -> None:
    """Say what is about to be trained, and where it is written.

    Args:
        settings: Settings of the training.
        model: A `DiTModel`, whole.
        flops_per_image: Floating-point operations of one image's step.
        num_processes: Number of processes that train.
        step: Number of steps done before.
    """
    if step >= settings.max_train_steps:
        return
    config = model.config
    gmacs = flops_per_image / 6e9  # forward and backward cost three forwards, and a multiply-add is two operations
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}, patches of {config.patch_size}: "
        f"{count / 1e6:,.1f} million parameters, of which {trained / 1e6:,.1f} are trained, and {gmacs:.3g} billion "
        "multiply-adds for an image and pass"
    )
    images = images_a_step(settings.to_dict(), num_processes)
    logger.info(
        f"steps {step + 1} to {settings.max_train_steps} of {images} images; metrics every "
        f"{settings.logging_steps} steps, previews every {settings.validation_steps}, checkpoints every "
        f"{settings.checkpointing_steps}"
    )
    logger.info(f"everything is written to {settings.output_dir}")
    if settings.report_to == "tensorboard":
        logger.info(f"to watch the training: tensorboard --logdir {settings.output_dir}/logs")


class Forecast:
    """Say once, after the first steps, how long the others take.

    Args:
        num_steps: Number of steps of the whole training.
        max_minutes: Minutes after which the training ends anyway; None for no such limit.
    """

    def __init__(self, num_steps: int, max_minutes: float | None) -> None:
        self.num_steps, self.max_minutes = num_steps, max_minutes
        self.times: list[float] = []

    def add(self, step: int) -> None:
        """Count a step.

        Args:
            step: Number of steps done, this one included.
        """
        if len(self.times) > FIRST_STEPS:
            return
        self.times.append(time.monotonic())
        if len(self.times) > FIRST_STEPS and step < self.num_steps:
            seconds = (self.times[-1] - self.times[0]) / FIRST_STEPS
            logger.info(self.describe(self.num_steps - step, seconds))

    def describe(self, num_left: int, seconds: float) -> str:
        """Return the sentence for the steps that are left.

        Args:
            num_left: Number of steps.
            seconds: Time of one step.
        """
        minutes = num_left * seconds / 60
        text = f"{seconds:.2g} seconds a step: about {in_words(minutes)} for the {num_left} steps that are left"
        if self.max_minutes is not None and minutes > self.max_minutes:
            text += f", of which max_train_minutes={self.max_minutes:g} lets about {self.max_minutes / minutes:.0%} run"
        return text


def in_words(minutes: float) -> str:
    """Return a time in the unit that suits it: 90 seconds, 45 minutes, 30 hours, 12 days."""
    for size, unit in ((1 / 60, "seconds"), (1, "minutes"), (60, "hours")):
        if minutes < 100 * size:
            return f"{minutes / size:.0f} {unit}"
    return f"{minutes / 60 / 24:.0f} days"
