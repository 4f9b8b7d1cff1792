"""The training loop: a generator that yields one record per optimiser step.

Model, data and objective are handed in, and the caller logs, saves and samples between two steps. All random numbers of
a sample are keyed by (seed, epoch, position), so that neither a restart nor the number of processes changes them.
Example: the noise of the sample at position 7 of epoch 2 is the same on one process as on eight.
A step whose loss or gradient is not finite is skipped: it changes nothing, and its record names the processes.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..diffusion.objectives import Objective
from .batch import Draws, LatentBatch, StepRecord
from .ema import EMA
from .processes import deepspeed_zero
from .techniques import Techniques

NUM_QUARTILES = 4  # of the timesteps; each has a loss of its own in the metrics


class KeyedDraws:
    """Timestep, noise and label dropout of each sample, from (seed, epoch, position).

    Args:
        seed: Seed of the training.
        objective: Objective that maps uniform numbers to its timesteps.
        class_dropout_prob: Share of labels that are replaced by the null class; 0 for a model without one.
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
            # on the CPU, so that every device trains on the same timesteps
            timestep=self.objective.draw_timesteps(torch.from_numpy(uniform[:, 0])).to(device),
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
    techniques: Techniques | None = None,
    first_step: int = 0,
    images_seen: int = 0,
    max_grad_norm: float | None = None,
) -> Iterator[StepRecord]:
    """Train for as long as the caller asks for records.

    Args:
        accelerator: Accelerator that prepared `model` and `optimizer`; it knows how many forwards make a step.
        model: Model in train mode.
        optimizer: Optimiser as Accelerate has prepared it.
        lr_scheduler: Learning rate schedule, not prepared: a prepared one would step once for each process.
        ema: Averages of the unwrapped model.
        objective: Objective of `dit_hf.diffusion`.
        batches: Endless batches of this process.
        draw: Function that returns the random part of a batch's loss.
        techniques: Techniques that change the losses.
        first_step: Number of steps done before.
        images_seen: Number of images that all processes together have trained on before.
        max_grad_norm: Norm that gradients are clipped to; None for no clipping, as in the paper.
    """
    techniques = techniques or Techniques()
    trained = [model, *techniques.networks]
    step = first_step
    micro_losses: list[dict[str, Tensor]] = []
    quartiles = torch.zeros(NUM_QUARTILES, 2, device=accelerator.device)
    samples: list[tuple[int, int]] = []
    for batch in batches:
        draws = draw(batch)
        with accelerator.accumulate(*trained):
            losses = compute_losses(accelerator.unwrap_model(model), model, objective, batch, draws, techniques, step)
            loss = losses["loss"].mean()
            if deepspeed_zero.uses_zero(accelerator):  # its engine steps within `backward`
                loss = deepspeed_zero.poison(loss)
            accelerator.backward(loss)
            micro_losses.append({name: values.detach().mean() for name, values in losses.items()})
            quartiles += sum_by_quartile(losses["loss"].detach(), draws.timestep, objective.num_train_timesteps)
            samples += batch.positions
            images_seen += len(batch.x_0) * accelerator.num_processes
            if not accelerator.sync_gradients:
                continue
            means = {name: torch.stack([each[name] for each in micro_losses]).mean() for name in losses}
            grad_norm = measure_and_clip(accelerator, trained, max_grad_norm)
            bad_ranks = find_bad_ranks(accelerator, means["loss"], grad_norm)
            learning_rates = name_learning_rates(lr_scheduler)
            if bad_ranks is None or accelerator.scaler:  # a loss scaler skips the step by itself, and adapts to it
                optimizer.step()
            optimizer.zero_grad()
        if bad_ranks is None and not accelerator.optimizer_step_was_skipped:
            lr_scheduler.step()
            ema.update(accelerator.unwrap_model(model))
        step += 1
        yield StepRecord(
            step, images_seen, batch.next_position, means, quartiles, grad_norm, learning_rates, samples, bad_ranks
        )
        micro_losses, quartiles, samples = [], torch.zeros_like(quartiles), []


def compute_losses(
    unwrapped: torch.nn.Module,
    model: torch.nn.Module,
    objective: Objective,
    batch: LatentBatch,
    draws: Draws,
    techniques: Techniques,
    step: int = 0,
) -> dict[str, Tensor]:
    """Return the losses of each sample, (B,) by name: the objective's, changed by the techniques."""

    def compute() -> dict[str, Tensor]:
        return objective(
            model,
            batch.x_0,
            timestep=draws.timestep,
            noise=draws.noise,
            class_labels=batch.class_labels,
            drop_labels=draws.drop_labels,
        )

    return techniques.apply(compute, unwrapped, batch, draws, step)


def sum_by_quartile(losses: Tensor, timestep: Tensor, num_train_timesteps: int) -> Tensor:
    """Return sum and number of the losses in each quarter of the timesteps, (4, 2)."""
    quartile = (timestep * NUM_QUARTILES / num_train_timesteps).long().clamp(0, NUM_QUARTILES - 1)  # (B,)
    sums = torch.zeros(NUM_QUARTILES, 2, device=losses.device)
    return sums.index_add_(0, quartile, torch.stack([losses, torch.ones_like(losses)], dim=1))


def name_learning_rates(lr_scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, float]:
    """Return the rates of the coming step: AdamW's, which is that of the first group, and Muon's if it has groups."""
    rates = [float(rate) for rate in lr_scheduler.get_last_lr()]
    return {"learning_rate": rates[0]} | ({"muon_learning_rate": rates[-1]} if len(rates) > 1 else {})


def measure_and_clip(accelerator: Accelerator, trained: list[torch.nn.Module], max_norm: float | None) -> Tensor:
    """Clip the gradients of all modules together to `max_norm`, and return their norm before that."""
    if deepspeed_zero.uses_zero(accelerator):  # its engine has measured and clipped them
        return torch.tensor(accelerator.deepspeed_engine_wrapped.get_global_grad_norm(), device=accelerator.device)
    accelerator.unscale_gradients()
    parameters = [each for module in trained for each in module.parameters() if each.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def find_bad_ranks(accelerator: Accelerator, loss: Tensor, grad_norm: Tensor) -> list[int] | None:
    """Return None if the step is finite everywhere; else the processes whose loss is not, agreed by all."""
    flags = torch.stack([~torch.isfinite(loss), ~torch.isfinite(grad_norm)]).float()[None]  # (1, 2)
    bad = accelerator.gather(flags).cpu()  # (processes, 2)
    return bad[:, 0].nonzero().flatten().tolist() if bad.any() else None
