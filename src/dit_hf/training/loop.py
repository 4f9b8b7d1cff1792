"""The training loop, as a generator that yields one record a step.

The model, the data and the objective are handed in; logging, saving and sampling are the caller's lines. All randomness
of a sample is keyed by (seed, epoch, position), so that neither a restart nor the number of processes changes it.
A step whose loss or gradient is not finite changes nothing: it is passed over, and told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..diffusion.objectives import Objective
from .ema import EMA
from .processes import deepspeed_zero

NUM_QUARTILES = 4  # of the timesteps, whose losses are told apart


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
    quartiles: Tensor  # (4, 2): sum and number of the losses of each quarter of the timesteps
    grad_norm: Tensor  # before clipping
    learning_rate: float
    samples: list[tuple[int, int]]  # (epoch, offset) of this process's samples
    bad_ranks: list[int] | None = None  # of a step that was passed over: whose loss was not finite


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
    ema: EMA,
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
        ema: of the unwrapped model.
        objective: of `dit_hf.diffusion`.
        batches: endless.
        draw: the random part of a batch's loss.
        first_step: steps already done.
        images_seen: over all processes, already.
        max_grad_norm: gradients are clipped to this norm; None for no clipping, as the paper.
    """
    step = first_step
    micro_losses: list[dict[str, Tensor]] = []
    quartiles = torch.zeros(NUM_QUARTILES, 2, device=accelerator.device)
    samples: list[tuple[int, int]] = []
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
            loss = losses["loss"].mean()
            if deepspeed_zero.uses_zero(accelerator):  # its engine steps within `backward`
                loss = deepspeed_zero.poison(loss)
            accelerator.backward(loss)
            micro_losses.append({name: values.detach().mean() for name, values in losses.items()})
            quartiles += sum_by_quartile(losses["loss"].detach(), drawn.timestep, objective.num_train_timesteps)
            samples += batch.positions
            images_seen += len(batch.x_0) * accelerator.num_processes
            if not accelerator.sync_gradients:
                continue
            means = {name: torch.stack([each[name] for each in micro_losses]).mean() for name in losses}
            grad_norm = measure_and_clip(accelerator, model, max_grad_norm)
            bad_ranks = find_bad_ranks(accelerator, means["loss"], grad_norm)
            learning_rate = float(lr_scheduler.get_last_lr()[0])
            if bad_ranks is None or accelerator.scaler:  # a loss scaler passes over by itself, and learns from it
                optimizer.step()
            optimizer.zero_grad()
        if bad_ranks is None and not accelerator.optimizer_step_was_skipped:
            lr_scheduler.step()
            ema.update(accelerator.unwrap_model(model))
        step += 1
        yield StepRecord(
            step, images_seen, batch.next_position, means, quartiles, grad_norm, learning_rate, samples, bad_ranks
        )
        micro_losses, quartiles, samples = [], torch.zeros_like(quartiles), []


def sum_by_quartile(losses: Tensor, timestep: Tensor, num_train_timesteps: int) -> Tensor:
    """Sum and number of the losses in each quarter of the timesteps, (4, 2)."""
    quartile = (timestep * NUM_QUARTILES / num_train_timesteps).long().clamp(0, NUM_QUARTILES - 1)  # (B,)
    sums = torch.zeros(NUM_QUARTILES, 2, device=losses.device)
    return sums.index_add_(0, quartile, torch.stack([losses, torch.ones_like(losses)], dim=1))


def measure_and_clip(accelerator: Accelerator, model: torch.nn.Module, max_norm: float | None) -> Tensor:
    """The norm of all gradients, as it was before they were clipped to `max_norm`."""
    if deepspeed_zero.uses_zero(accelerator):  # its engine has measured and clipped them
        return torch.tensor(accelerator.deepspeed_engine_wrapped.get_global_grad_norm(), device=accelerator.device)
    accelerator.unscale_gradients()
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def find_bad_ranks(accelerator: Accelerator, loss: Tensor, grad_norm: Tensor) -> list[int] | None:
    """None if the step is finite everywhere; else the processes whose loss is not, agreed by all."""
    flags = torch.stack([~torch.isfinite(loss), ~torch.isfinite(grad_norm)]).float()[None]  # (1, 2)
    bad = accelerator.gather(flags).cpu()  # (processes, 2)
    return bad[:, 0].nonzero().flatten().tolist() if bad.any() else None
