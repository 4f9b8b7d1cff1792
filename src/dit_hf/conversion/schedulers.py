"""diffusers' schedulers as a DiT needs them, by name."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from ..betas import BETA_FIELDS, PAPER_BETAS
from ..sampling.schedulers import SCHEDULERS

# Settings that a DiT needs beside the betas, where they are not the scheduler's defaults.
NEEDED: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"clip_sample": False, "timestep_spacing": "linspace", "variance_type": "learned_range"},
    "DDIMScheduler": {"clip_sample": False, "timestep_spacing": "leading"},
}
# Settings that belong to the training of a model, so that another scheduler must have them too.
TRAINED_WITH = (*BETA_FIELDS, "num_train_timesteps", "prediction_type")


def make_flow_scheduler(name: str, num_train_timesteps: int, shift: float = 1.0) -> Any:
    """Make a scheduler of flow matching: one that is made for it, or a solver that can walk its sigmas.

    Args:
        name: Name of diffusers' class.
        num_train_timesteps: Timestep of pure noise.
        shift: Shift s of the noise levels, to s t / (1 + (s - 1) t).

    Raises:
        ValueError: If diffusers has no such scheduler, or it has no sigmas of flow matching.
    """
    cls = getattr(diffusers, name, None) if name in SCHEDULERS else None
    if cls is not None and SCHEDULERS[name].flow:
        return cls(num_train_timesteps=num_train_timesteps, shift=shift)
    if cls is None or "use_flow_sigmas" not in inspect.signature(cls).parameters:
        raise ValueError(
            f"{name!r} is no scheduler of diffusers for flow matching: choose FlowMatchEulerDiscreteScheduler, "
            "FlowMatchHeunDiscreteScheduler or DPMSolverMultistepScheduler"
        )
    of_flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return cls(num_train_timesteps=num_train_timesteps, **of_flow)


def flow_shift(config: Mapping[str, Any]) -> float:
    """Return the shift of a scheduler's noise levels under flow matching, which diffusers keeps under two names."""
    return float(config.get("shift", config.get("flow_shift", 1.0)))


def make_scheduler(name: str, learn_sigma: bool, template: Any = None) -> Any:
    """Make a scheduler.

    Args:
        name: Name of diffusers' class.
        learn_sigma: Whether the model has a variance to use.
        template: Scheduler whose betas and kind of prediction are taken over; None takes the paper's betas.

    Raises:
        ValueError: If diffusers has no such scheduler, or if it cannot have the betas of the template.
    """
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    parameters = {} if cls is None else inspect.signature(cls).parameters
    if cls is None or "beta_start" not in parameters:
        raise ValueError(
            f"{name!r} is no scheduler of diffusers with betas: choose DDPMScheduler, DDIMScheduler or the like"
        )
    needed = dict(NEEDED.get(name, {}))
    if not learn_sigma and "variance_type" in needed:
        needed["variance_type"] = "fixed_small"
    trained_with = {} if template is None else {k: template.config[k] for k in TRAINED_WITH if k in template.config}
    if lost := [key for key, value in trained_with.items() if value and key not in parameters]:
        raise ValueError(
            f"{name} has no {lost[0]}, and the model was trained with {trained_with[lost[0]]!r}: choose DDIMScheduler"
        )
    kept = {key: value for key, value in trained_with.items() if key in parameters}
    return cls(**{**PAPER_BETAS, **needed, **kept})


def replacement(pipeline: Any, name: str) -> Any:
    """Make another scheduler for a pipeline, which keeps what the model was trained with.

    Raises:
        ValueError: As in `make_flow_scheduler` or `make_scheduler`.
    """
    config = pipeline.scheduler.config
    if pipeline.config.prediction_type.startswith("flow_"):
        return make_flow_scheduler(name, config.num_train_timesteps, flow_shift(config))
    return make_scheduler(name, pipeline.transformer.config.learn_sigma, template=pipeline.scheduler)


def with_scheduler(pipeline: Any, name: str) -> Any:
    """Return a pipeline with the same parts and another scheduler, which keeps what the model was trained with.

    Args:
        pipeline: `DiTPipeline`.
        name: Class name of a scheduler of diffusers, one of `dit_hf.sampling.schedulers.SCHEDULERS`.

    Raises:
        ValueError: If the scheduler is unknown, or cannot sample this model.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler={name}: choose from {', '.join(SCHEDULERS)}")
    return type(pipeline).from_pipe(pipeline, scheduler=replacement(pipeline, name))
