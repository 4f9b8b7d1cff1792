"""What goes through a step of the training: a batch of latents, its random draws, and the record of the step."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass
class LatentBatch:
    """What one process trains on in one forward."""

    x_0: Tensor  # (B, C, h, w)
    class_labels: Tensor | None  # (B,), None for an unconditional model
    positions: list[tuple[int, int]]  # (epoch, offset) of each sample
    next_position: tuple[int, int]  # where the stream continues after this batch
    extras: dict[str, Tensor] = field(default_factory=dict)  # what techniques need besides; (B, ...) each


class Draws(NamedTuple):
    """The random part of the loss of a batch."""

    timestep: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)
    drop_labels: Tensor | None  # (B,) bool; None for a model without null class


@dataclass
class StepRecord:
    """What happened in one optimiser step; losses are means over this process's samples."""

    step: int  # counted from 1
    images_seen: int  # by all processes together, since the start of the training
    position: tuple[int, int]  # (epoch, offset) where the stream continues
    losses: dict[str, Tensor]  # loss, its terms (mse, vb ...) and those of techniques; scalars
    quartiles: Tensor  # (4, 2): sum and number of the losses of each quarter of the timesteps
    grad_norm: Tensor  # before clipping
    learning_rates: dict[str, float]  # of the optimiser's kinds of parameters, as `metrics.jsonl` names them
    samples: list[tuple[int, int]]  # (epoch, offset) of this process's samples
    bad_ranks: list[int] | None = None  # of a step that was skipped: processes whose loss was not finite
