"""How long a study takes on this machine: each model is timed for a moment, and what is missing is added up."""

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
    """Seconds of one image on this machine, for one model."""

    training: float
    forward: float


def measure_speed(model: DiTModel, device: torch.device) -> Speed:
    """Time a training step and a forward, each after one that warms up.

    Args:
        model: one of its own, as its weights change.
        device: to time it on.
    """
    config = model.to(device).config
    latents = torch.zeros(TIMED_BATCH, config.in_channels, *config.sample_height_width, device=device)
    labels = torch.zeros(TIMED_BATCH, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def train() -> None:
        model.train()(latents, 0, labels).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def sample() -> None:
        model.eval()(latents, 0, labels)

    return Speed(*(_seconds(work, device) / TIMED_BATCH for work in (train, sample)))


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
    keys: Iterable[MeasurementKey], speeds: Mapping[tuple[str, str], Speed], images_seen: Mapping[Variant, int]
) -> list[float]:
    """Expected seconds of each measurement, with what is missing of its training; time for scoring is not counted.

    Args:
        keys: in order.
        speeds: by model and design of the block.
        images_seen: by trainings that have begun.
    """
    seen, expected = dict(images_seen), []
    for key in keys:
        cell, speed = Variant(key.model, key.block_type, key.seed), speeds[key.model, key.block_type]
        images = max(key.images_seen - seen.get(cell, 0), 0)
        forwards = key.num_samples * key.num_steps * (2 if key.guidance_scale > 1 else 1)
        expected.append(images * speed.training + forwards * speed.forward)
        seen[cell] = max(key.images_seen, seen.get(cell, 0))
    return expected


def format_plan(keys: Sequence[MeasurementKey], seconds: Sequence[float]) -> str:
    """Hours by seed and checkpoint, in the order of work, and in all."""
    groups: dict[str, list[float]] = {}
    for key, expected in zip(keys, seconds, strict=True):
        what = f"seed {key.seed}, {key.images_seen:,} images seen, {key.num_samples:,} samples"
        what += f", guidance {key.guidance_scale:g}" if key.guidance_scale != 1 else f", {key.num_steps} steps"
        groups.setdefault(what, []).append(expected)
    lines = [f"{sum(group) / 3600:8.2f} h  {what}: {len(group)} measurements" for what, group in groups.items()]
    return "\n".join([*lines, f"{sum(seconds) / 3600:8.2f} h  in all"])
