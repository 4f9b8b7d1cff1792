"""How long a study takes on this machine: each model is timed for a moment, and what is missing is added up."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..analysis.results import Key
from .recipe import Cell


@dataclass
class Speed:
    """Seconds of an image on this machine, for one model."""

    training_step: float  # per image
    forward: float  # per image


@dataclass
class Plan:
    """What is missing, and the seconds that it is expected to take.

    Args:
        keys: in order.
        speeds: by (model, block type).
        images_seen: of each training, so far.
    """

    keys: Sequence[Key]
    speeds: dict[tuple[str, str], Speed]
    images_seen: dict[Cell, int] = field(default_factory=dict)

    def seconds(self) -> list[float]:
        """Expected seconds of each measurement, what is left of its training included."""
        seen, expected = dict(self.images_seen), []
        for key in self.keys:
            cell, speed = Cell(key.model, key.block_type, key.seed), self.speeds[key.model, key.block_type]
            images = max(key.images_seen - seen.get(cell, 0), 0)
            forwards = key.num_samples * key.num_steps * (2 if key.guidance_scale > 1 else 1)
            expected.append(images * speed.training_step + forwards * speed.forward)
            seen[cell] = max(key.images_seen, seen.get(cell, 0))
        return expected


def measure_speed(model: torch.nn.Module, latents: torch.Tensor, num_classes: int) -> Speed:
    """Time one training step and one forward, each after one that warms up.

    Args:
        model: a DiT of its own, which is thrown away.
        latents: a batch (B, C, h, w) on the model's device.
        num_classes: 0 for none.
    """
    labels = torch.zeros(len(latents), dtype=torch.long, device=latents.device) if num_classes else None
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def train() -> None:
        model.train()(latents, 0, labels).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def sample() -> None:
        model.eval()(latents, 0, labels)

    return Speed(*(_time(work, latents.device) / len(latents) for work in (train, sample)))


def _time(work, device: torch.device) -> float:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
