"""Rehearse the steps of a scheduler before the model runs.

Some settings of diffusers' schedulers end in an exception or in NaN after many steps: timesteps that repeat, rounded
noise levels, combinations that a class does not implement. Example: a solver that divides by the difference of two
noise levels, and takes as many steps as there are timesteps. A rehearsal on four numbers finds them all; it takes 0.1
to 3 ms a step, once for each combination of settings.
"""

import copy
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from .schedulers import traits_of

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
PASSED: set[int] = set()  # hashes of the settings that were rehearsed with success


def rehearse(scheduler: SchedulerMixin, timesteps: Tensor, arguments: dict[str, Any], has_variance: bool) -> None:
    """Refuse steps in which a scheduler fails, or makes numbers that are not finite.

    Args:
        scheduler: Scheduler whose timesteps are set; it is not changed.
        timesteps: Timestep of each evaluation of the model (N,).
        arguments: Further arguments of the scheduler's `step`.
        has_variance: Whether `step` takes a variance beside epsilon.

    Raises:
        ValueError: If a step fails; the message names the step and the scheduler's settings.
    """
    settings = ", ".join(f"{name}={value!r}" for name, value in scheduler.config.items() if not name.startswith("_"))
    key = hash((type(scheduler), settings, *timesteps.tolist(), arguments.get("eta"), has_variance))
    if key in PASSED or not traits_of(scheduler).is_rehearsed:
        return
    if "generator" in arguments:  # the user's generator draws for the images only
        arguments = {**arguments, "generator": torch.Generator().manual_seed(0)}
    scheduler, x = copy.deepcopy(scheduler), torch.ones(1, 1, 2, 2)  # (B, C, H, W)
    for step, t in enumerate(timesteps):
        try:
            answer = (scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x) / 2
            if has_variance:
                answer = torch.cat([answer, torch.zeros_like(answer)], dim=1)  # (B, 2C, H, W)
            x = scheduler.step(answer, t, x, **arguments).prev_sample
            why = None if torch.isfinite(x).all() else "its numbers are not finite"
        except FAILURES as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            raise ValueError(
                f"{type(scheduler).__name__} fails in step {step + 1} of {len(timesteps)} (t = {t:g}), {why}: pass "
                f"another number of steps, other settings, or another scheduler. Its settings: {settings}"
            )
    PASSED.add(key)
