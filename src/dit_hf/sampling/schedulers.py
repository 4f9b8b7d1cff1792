"""Schedulers: which of diffusers' schedulers sample a DiT, what each of them needs, and the timesteps of a call.

A scheduler's class says less than sampling has to know: whether it can use a learned variance, whether its `step`
follows its own timesteps, which settings make it fail. `SCHEDULERS` and the checks below hold these facts; each of them
is tested against an exact denoiser, whose samples are known in closed form (tests/sampling/test_schedulers.py).
"""

import inspect
import math
import operator
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
from diffusers import (
    DDIMInverseScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging
from torch import Tensor

from .limits import check_count, falling_numbers


class SchedulerTraits(NamedTuple):
    """What sampling has to know of a scheduler beyond its interface."""

    num_steps: int  # usual number of steps
    learned_variance: Literal["used", "ignored", "refused"]  # with variance_type "learned" or "learned_range"
    steps_by_ratio: bool = False  # its `step` goes from t to t - T // num_steps, whatever its timesteps are
    flow: bool = False  # flow matching: no betas, and no field prediction_type
    starts_midway: bool = True  # can start from an image with some noise on it
    divides_by_step: bool = False  # divides by the difference of two noise levels, which must not be zero
    is_rehearsed: bool = True  # has settings that fail only after some steps


SCHEDULERS: dict[str, SchedulerTraits] = {
    "DDPMScheduler": SchedulerTraits(250, "used", is_rehearsed=False),
    "DDIMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True),
    # it counts its calls, and so begins at the first step only
    "PNDMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True, starts_midway=False),
    "EulerDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "EulerAncestralDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "HeunDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "DPMSolverMultistepScheduler": SchedulerTraits(25, "refused", divides_by_step=True),
    "DPMSolverSinglestepScheduler": SchedulerTraits(25, "refused", divides_by_step=True),
    "UniPCMultistepScheduler": SchedulerTraits(25, "ignored", divides_by_step=True),
    "DEISMultistepScheduler": SchedulerTraits(25, "ignored", divides_by_step=True),
    "SASolverScheduler": SchedulerTraits(25, "refused", divides_by_step=True),
    "FlowMatchEulerDiscreteScheduler": SchedulerTraits(50, "ignored", flow=True),
    "FlowMatchHeunDiscreteScheduler": SchedulerTraits(50, "ignored", flow=True),
}


# What a model trained by flow matching may predict, on the path x_t = (1 - sigma) x_0 + sigma noise. Its schedulers
# read the first; `velocity` turns the second into it.
FLOW_PREDICTIONS = ("flow_prediction", "flow_sample")  # noise - x_0; x_0


def traits_of(scheduler: SchedulerMixin) -> SchedulerTraits:
    """Return the row of `SCHEDULERS` for a scheduler; a subclass samples as its parent does.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(scheduler, DDIMInverseScheduler):  # used by DiTImg2ImgPipeline.invert only
        return SchedulerTraits(50, "ignored", steps_by_ratio=True, starts_midway=False)
    for cls in type(scheduler).__mro__:
        if cls.__name__ in SCHEDULERS:
            return SCHEDULERS[cls.__name__]
    raise ValueError(f"{type(scheduler).__name__} is not supported: choose from {', '.join(SCHEDULERS)}")


def check_scheduler(scheduler: SchedulerMixin, prediction_type: str | None, learn_sigma: bool) -> str:
    """Refuse a scheduler that cannot sample a model, and return what the model predicts.

    Args:
        scheduler: Scheduler with its settings.
        prediction_type: "epsilon", "sample", "v_prediction", "flow_prediction" or "flow_sample"; None for what the
            scheduler reads.
        learn_sigma: Whether the model predicts a variance.

    Raises:
        ValueError: If the scheduler is unknown, reads another prediction, needs a variance that is not there, or has
            settings with which it fails.
    """
    predicted = _check_prediction(scheduler, prediction_type)
    takes_variance(scheduler, learn_sigma)
    _check_signal(scheduler, predicted)
    _check_solver(scheduler)
    return predicted


def _check_prediction(scheduler: SchedulerMixin, prediction_type: str | None) -> str:
    """Return what the model predicts, and refuse a scheduler that would read its answer as something else."""
    name, config, flow = type(scheduler).__name__, scheduler.config, traits_of(scheduler).flow
    expected = "flow_prediction" if flow else config.prediction_type
    if flow and prediction_type is None:
        raise ValueError(
            f"{name} needs a model trained by flow matching: if it was, pass prediction_type='{expected}', or "
            "'flow_sample' if it predicts x_0"
        )
    read = FLOW_PREDICTIONS if expected == "flow_prediction" else (expected,)
    if prediction_type not in (None, *read):
        fix = "a scheduler with betas, such as DDIMScheduler" if flow else f"prediction_type={prediction_type!r} in it"
        fix = "FlowMatchEulerDiscreteScheduler" if prediction_type in FLOW_PREDICTIONS else fix
        raise ValueError(f"{name} samples {expected!r}, the model was trained with {prediction_type!r}: use {fix}")
    if expected == "flow_prediction" and not flow and not config.get("use_flow_sigmas"):
        raise ValueError(f"{name} has prediction_type='flow_prediction': it needs use_flow_sigmas=True beside it")
    return prediction_type or expected


def takes_variance(scheduler: SchedulerMixin, learn_sigma: bool) -> bool:
    """Return whether the scheduler's `step` takes 2C channels, epsilon and the learned variance.

    Raises:
        ValueError: If the scheduler wants a variance that the model does not predict, or fails on 2C channels.
    """
    name, treatment = type(scheduler).__name__, traits_of(scheduler).learned_variance
    variance_type = scheduler.config.get("variance_type")
    if variance_type not in ("learned", "learned_range") or treatment == "ignored":
        return False
    if treatment == "refused" or not learn_sigma:
        why = "it keeps three channels only" if treatment == "refused" else "the model has learn_sigma=False"
        fix = None if treatment == "refused" else "fixed_small"
        raise ValueError(
            f"{name} cannot use variance_type={variance_type!r}, {why}: build it with "
            f"{name}.from_config(config, variance_type={fix!r})"
        )
    return True


def warn_of_clipping(scheduler: SchedulerMixin) -> None:
    """Warn of a scheduler that clips its estimate of x_0, as is made for pixels: latents are mostly outside."""
    if scheduler.config.get("clip_sample"):
        name, most = type(scheduler).__name__, scheduler.config.clip_sample_range
        message = f"{name} has clip_sample=True and clips latents at +-{most:g}, which may leave noise for an image: "
        logging.get_logger(__name__).warning(f"{message}build it with {name}.from_config(config, clip_sample=False).")


def _check_steps(scheduler: SchedulerMixin, num_steps: int) -> None:
    """Refuse a number of steps that the scheduler cannot take, or whose timesteps its own `step` does not follow."""
    name, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, PNDMScheduler) and not config.skip_prk_steps and num_steps < 4:
        why, fix = "begins with three steps of another kind", "num_inference_steps=4 or more, or skip_prk_steps=True"
        raise ValueError(f"{name} with num_inference_steps={num_steps} {why}: pass {fix}")
    spacing = config.get("timestep_spacing")
    if not traits_of(scheduler).steps_by_ratio or spacing == "leading":
        return
    if spacing == "linspace" or config.num_train_timesteps % num_steps:
        unclipped = ", clip_sample=False" if "clip_sample" in config else ""
        raise ValueError(
            f"{name} always steps by {config.num_train_timesteps} // {num_steps}, not as timestep_spacing="
            f"{spacing!r} says: build it with {name}.from_config(config, timestep_spacing='leading'{unclipped})"
        )


def _check_solver(scheduler: SchedulerMixin) -> None:
    """Refuse settings of a scheduler with which it fails on the exact denoiser of a Gaussian."""
    name, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, DDPMScheduler) and config.variance_type in ("learned", "fixed_large_log"):
        why = "the model learns a range" if config.variance_type == "learned" else "it takes the root of a logarithm"
        fix = "learned_range" if config.variance_type == "learned" else "fixed_large"
        raise ValueError(f"{name} fails with variance_type={config.variance_type!r}, {why}: use {fix!r}")
    if isinstance(scheduler, DEISMultistepScheduler) and config.solver_order > 2:
        why, fix = "loses its digits, and errs the more the more steps it takes", "solver_order=2"
        raise ValueError(f"{name} with solver_order={config.solver_order} {why}: use {fix}")
    if isinstance(scheduler, UniPCMultistepScheduler) and config.solver_type == "bh1":
        if config.final_sigmas_type == "zero":
            fix = "solver_type='bh2' or final_sigmas_type='sigma_min'"
            raise ValueError(f"{name} with solver_type='bh1' multiplies infinity by zero in its last step: use {fix}")


def _check_signal(scheduler: SchedulerMixin, predicted: str) -> None:
    """Refuse betas that leave nothing of x_0 at the last timestep, if the model predicts epsilon."""
    is_rescaled = scheduler.config.get("rescale_betas_zero_snr")
    if predicted == "epsilon" and (is_rescaled or scheduler.alphas_cumprod[-1] == 0):
        betas = "rescale_betas_zero_snr=True" if is_rescaled else "trained_betas"
        raise ValueError(
            f"{type(scheduler).__name__} has betas that leave nothing of x_0 at the last timestep ({betas}), where "
            "epsilon does not say what x_0 is: use the betas that the model was trained with, "
            "rescale_betas_zero_snr=False, or a model that predicts 'v_prediction' or 'sample'"
        )


def set_timesteps(scheduler: SchedulerMixin, num_steps: int | None, timesteps: Any, sigmas: Any) -> Tensor:
    """Set a scheduler to the steps of a call, and return the timestep of each evaluation of the model (N,).

    The timesteps stay in host memory: schedulers branch on them and index with them, for which a loop on a GPU would
    stop and wait. At most one of the three arguments is given; none of them is the scheduler's usual number of steps.

    Args:
        scheduler: Scheduler, whose state changes.
        num_steps: Number of steps in 1..T.
        timesteps: Falling whole numbers in 0..T - 1, if the scheduler takes them.
        sigmas: Falling noise levels in the scheduler's own terms, if it takes them.

    Raises:
        ValueError: If a value is outside its limits, or the scheduler does not take it.
    """
    name, num_train = type(scheduler).__name__, scheduler.config.num_train_timesteps
    own = {"num_inference_steps": num_steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {argument: value for argument, value in own.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each say which steps to take: pass one of them")
    for argument in given.keys() - inspect.signature(scheduler.set_timesteps).parameters.keys():
        raise ValueError(f"{name} takes no {argument}: pass num_inference_steps, or another scheduler")
    if timesteps is not None:
        given["timesteps"] = falling_numbers("timesteps", timesteps, operator.index, 0, num_train - 1)
    elif sigmas is not None:
        given["sigmas"] = falling_numbers("sigmas", sigmas, float, 0.0, math.inf)
    else:
        num_steps = min(traits_of(scheduler).num_steps, num_train) if num_steps is None else num_steps
        check_count("num_inference_steps", num_steps, num_train)
        _check_steps(scheduler, num_steps)
        every = num_steps == num_train and traits_of(scheduler).divides_by_step
        given = _every_timestep(scheduler) if every else {"num_inference_steps": num_steps}
    scheduler.set_timesteps(**given, device="cpu")
    _check_trained(scheduler)
    if hasattr(scheduler, "set_begin_index"):  # otherwise it would look for the first timestep, which may occur twice
        scheduler.set_begin_index(0)
    return scheduler.timesteps


def _check_trained(scheduler: SchedulerMixin) -> None:
    """Refuse timesteps beyond those of the training."""
    name, num_train = type(scheduler).__name__, scheduler.config.num_train_timesteps
    first = float(scheduler.timesteps.max())
    if first > num_train - 1 and not (traits_of(scheduler).flow or scheduler.config.get("use_flow_sigmas")):
        raise ValueError(
            f"{name} begins at timestep {first:g}, beyond the trained 0..{num_train - 1}: pass fewer steps, or build "
            f"it with {name}.from_config(config, steps_offset=0)"
        )


def _every_timestep(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Return the arguments of `set_timesteps` for every timestep once; a spacing of its own would repeat some."""
    num_train = scheduler.config.num_train_timesteps
    if "timestep_spacing" in scheduler.config:
        scheduler.register_to_config(timestep_spacing="trailing")
    elif not any(scheduler.config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta", "flow")):
        return {"timesteps": list(range(num_train))[::-1]}
    return {"num_inference_steps": num_train}


def start_midway(scheduler: SchedulerMixin, strength: float) -> Tensor:
    """Let a scheduler whose timesteps are set begin at a part of them, and return those that are left (N',).

    Args:
        scheduler: Scheduler, whose state changes.
        strength: Share of the steps to take, in (0, 1].

    Raises:
        ValueError: If the scheduler cannot do so, or the strength leaves no step.
    """
    name = type(scheduler).__name__
    if not traits_of(scheduler).starts_midway:
        raise ValueError(f"{name} cannot start from an image: use DDIMScheduler or DPMSolverMultistepScheduler")
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise ValueError(f"strength={strength!r}: pass a number in (0, 1], 1 for all of the noise")
    total = math.ceil(len(scheduler.timesteps) / scheduler.order)
    if round(total * strength) == 0:
        raise ValueError(f"strength={strength} of {total} steps is none: pass more of either")
    begin = (total - round(total * strength)) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:]


def velocity(scheduler: SchedulerMixin, step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
    """Return the velocity noise - x_0 = (x_t - x_0) / sigma that a scheduler of flow matching reads, (B, C, H, W).

    Args:
        scheduler: Scheduler whose timesteps are set, and whose `sigmas` hold the noise level of each evaluation.
        step: Number of the evaluation in this call.
        x_t: Latents; (B, C, H, W).
        x_0: What the model predicts of x_0; (B, C, H, W).
    """
    sigma = float(scheduler.sigmas[(scheduler.begin_index or 0) + step])
    return (x_t - x_0) / max(sigma, 1e-6)  # without noise x_t is x_0, and the scheduler takes no step


def step_arguments(scheduler: SchedulerMixin, generator: Any, eta: float) -> dict[str, Any]:
    """Return the arguments beyond the usual three that a scheduler's `step` takes in a call.

    Raises:
        ValueError: If eta is outside [0, 1], or the scheduler has none.
    """
    parameters = inspect.signature(scheduler.step).parameters
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]: 0 is deterministic, 1 draws as much noise as DDPM")
    if eta and "eta" not in parameters:
        raise ValueError(f"eta={eta}: {type(scheduler).__name__} has none, leave it at 0 or use DDIMScheduler")
    return {name: value for name, value in {"generator": generator, "eta": eta}.items() if name in parameters}


def noise_levels(scheduler: SchedulerMixin, timesteps: Tensor) -> np.ndarray:
    """Return b / a of x_t = a x_0 + b noise at each timestep (N,); in flow matching b, where a = 1 - b."""
    if traits_of(scheduler).flow or scheduler.config.prediction_type == "flow_prediction":
        return timesteps.numpy() / scheduler.config.num_train_timesteps
    log_alpha_bar = scheduler.alphas_cumprod.double().log().cpu().numpy()
    return np.sqrt(np.expm1(-np.interp(timesteps.numpy(), np.arange(len(log_alpha_bar)), log_alpha_bar)))


def add_noise(scheduler: SchedulerMixin, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Bring clean latents (B or 1, C, H, W) to the noise level of one timestep (1,), in the scheduler's scaling."""
    latents = latents.expand_as(noise)  # (B, C, H, W)
    if traits_of(scheduler).flow:
        return scheduler.scale_noise(latents, timestep, noise)
    return scheduler.add_noise(latents, noise, timestep.expand(len(latents)))
