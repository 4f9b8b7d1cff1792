"""How long a study takes on this machine: the speed of each model, measured, times the work that is missing."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..analysis.results import MeasurementKey
from ..modeling_dit import DiTModel
from .recipe import Variant

TIMED_BATCH = 32


@dataclass(frozen=True)
class Speed:
    """Speed of one model on this machine.

    Args:
        training: Seconds of a training step for each image.
        forward: Seconds of a forward for each image.
    """

    training: float
    forward: float


def measure_speed(model: DiTModel, device: torch.device) -> Speed:
    """Time a training step and a forward, each after one that is not timed.

    Args:
        model: Model to time. Its weights change.
        device: Device to time the model on.
    """
    config = model.to(device).config
    latents = torch.zeros(TIMED_BATCH, config.in_channels, *config.sample_height_width, device=device)
    labels = torch.zeros(TIMED_BATCH, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def train_step() -> None:
        model.train()(latents, 0, labels).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def forward() -> None:
        model.eval()(latents, 0, labels)

    return Speed(*(_seconds(work, device) / TIMED_BATCH for work in (train_step, forward)))


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    elapsed = 0.0
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - began
    return elapsed


def expected_seconds(
    measurements: Iterable[MeasurementKey],
    speeds: Mapping[tuple[str, str], Speed],
    images_seen: Mapping[Variant, int],
) -> list[float]:
    """Return the expected seconds of each measurement, with the training that is still missing before it.

    The seconds of computing features and metrics are not included.

    Args:
        measurements: What is to be measured, in order.
        speeds: Speed of each pair of model and block design.
        images_seen: Number of images seen by each training that has begun.
    """
    seen, expected = dict(images_seen), []
    for measurement in measurements:
        variant = Variant.of(measurement)
        speed = speeds[variant.model, variant.block_type]
        images = max(measurement.images_seen - seen.get(variant, 0), 0)
        forwards = measurement.num_samples * measurement.num_steps * (2 if measurement.guidance_scale > 1 else 1)
        expected.append(images * speed.training + forwards * speed.forward)
        seen[variant] = max(measurement.images_seen, seen.get(variant, 0))
    return expected


def format_plan(measurements: Sequence[MeasurementKey], seconds: Sequence[float]) -> str:
    """Return the hours of each seed and checkpoint as text, in the order of work, and their sum.

    Args:
        measurements: What is to be measured, in order.
        seconds: Expected seconds of each measurement.
    """
    groups: dict[str, list[float]] = {}
    for key, expected in zip(measurements, seconds, strict=True):
        title = f"seed {key.seed}, {key.images_seen:,} images seen, {key.num_samples:,} samples"
        title += f", guidance {key.guidance_scale:g}" if key.guidance_scale != 1 else f", {key.num_steps} steps"
        groups.setdefault(title, []).append(expected)
    lines = [f"{sum(group) / 3600:8.2f} h  {title}: {len(group)} measurements" for title, group in groups.items()]
    return "\n".join([*lines, f"{sum(seconds) / 3600:8.2f} h  in all"])
