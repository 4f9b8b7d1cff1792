"""The training loop, as a generator that yields one record a step.

The model, the data and the objective are handed in; logging, saving and sampling are the caller's lines. All randomness
of a sample is keyed by (seed, epoch, position), so that neither a restart nor the number of processes changes it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..diffusion.objectives import Objective


@dataclass
class LatentBatch:
    """What one process trains on in one forward."""

    x_0: Tensor  # (B, C, h, w)
    class_labels: Tensor | None  # (B,), None for an unconditional model
    positions: list[tuple[int, int]]  # (epoch, offset) of each sample
    next_position: tuple[int, int]  # where the stream goes on after this batch


class Draws(NamedTuple):
    """The random part of the loss of a batch."""

    timestep: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)
    drop_labels: Tensor | None  # (B,) bool; None for a model without null class


@dataclass
class StepRecord:
    """What happened in one optimiser step; losses are means over this process's samples."""

    step: int  # counted from 1
    images_seen: int  # over all processes, since the start of the training
    position: tuple[int, int]  # (epoch, offset) where the stream goes on
    losses: dict[str, Tensor]  # loss, mse and, from the hybrid objective, vb; scalars
    grad_norm: Tensor  # before clipping
    learning_rate: float


class KeyedDraws:
    """Timestep, noise and label dropout of each sample, from (seed, epoch, position).

    Args:
        seed: of the run.
        objective: maps uniform numbers to its timesteps.
        class_dropout_prob: share of labels that are replaced by the null class; 0 for a model without one.
    """

    def __init__(self, seed: int, objective: Objective, class_dropout_prob: float) -> None:
        self.seed, self.objective, self.class_dropout_prob = seed, objective, class_dropout_prob

    def __call__(self, batch: LatentBatch) -> Draws:
        generators = [np.random.default_rng([self.seed, 3, *position]) for position in batch.positions]
        uniform = np.stack([rng.random(2, dtype=np.float32) for rng in generators])  # (B, 2), below 1 in float32 too
        shape = tuple(batch.x_0.shape[1:])
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in generators])  # (B, C, h, w)
        device = batch.x_0.device
        return Draws(
            timestep=self.objective.draw_timesteps(torch.from_numpy(uniform[:, 0]).to(device)),
            noise=torch.from_numpy(noise).to(batch.x_0),
            drop_labels=torch.from_numpy(uniform[:, 1] < self.class_dropout_prob).to(device)
            if self.class_dropout_prob
            else None,
        )


def train_steps(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ema: AveragedModel,
    objective: Objective,
    batches: Iterator[LatentBatch],
    draw: Callable[[LatentBatch], Draws],
    *,
    first_step: int = 0,
    images_seen: int = 0,
    max_grad_norm: float | None = None,
) -> Iterator[StepRecord]:
    """Train for as long as the caller asks for records.

    Args:
        accelerator: that `model` and `optimizer` were prepared with; it says how many forwards make a step.
        model: in train mode.
        lr_scheduler: not prepared, as a prepared one steps once for each process.
        ema: of the unwrapped model, see `make_ema`.
        objective: of `dit_hf.diffusion`.
        batches: endless.
        draw: the random part of a batch's loss.
        first_step: steps already done.
        images_seen: over all processes, already.
        max_grad_norm: gradients are clipped to this norm; None for no clipping, as the paper.
    """
    step = first_step
    micro_losses: list[dict[str, Tensor]] = []
    for batch in batches:
        drawn = draw(batch)
        with accelerator.accumulate(model):
            losses = objective(
                model,
                batch.x_0,
                timestep=drawn.timestep,
                noise=drawn.noise,
                class_labels=batch.class_labels,
                drop_labels=drawn.drop_labels,
            )
            accelerator.backward(losses["loss"].mean())
            if accelerator.sync_gradients:  # by an infinite limit nothing is clipped, and the norm is told all the same
                grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
            learning_rate = float(lr_scheduler.get_last_lr()[0])
            optimizer.step()
            optimizer.zero_grad()
        micro_losses.append({name: values.detach().mean() for name, values in losses.items()})
        images_seen += len(batch.x_0) * accelerator.num_processes
        if accelerator.sync_gradients:
            if not accelerator.optimizer_step_was_skipped:  # fp16's loss scaler skips what overflowed
                lr_scheduler.step()
                ema.update_parameters(accelerator.unwrap_model(model))
            step += 1
            means = {name: torch.stack([each[name] for each in micro_losses]).mean() for name in losses}
            micro_losses = []
            yield StepRecord(step, images_seen, batch.next_position, means, grad_norm, learning_rate)
