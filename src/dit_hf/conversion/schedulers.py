"""diffusers' schedulers as a DiT needs them, by name."""

import inspect
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


def make_flow_scheduler(name: str, num_train_timesteps: int) -> Any:
    """Make a scheduler of flow matching.

    Raises:
        ValueError: If diffusers has no such scheduler.
    """
    cls = getattr(diffusers, name, None) if name.startswith("FlowMatch") else None
    if cls is None:
        raise ValueError(
            f"{name!r} is no scheduler of diffusers for flow matching: choose FlowMatchEulerDiscreteScheduler or "
            "FlowMatchHeunDiscreteScheduler"
        )
    return cls(num_train_timesteps=num_train_timesteps)


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
    if SCHEDULERS[name].flow:
        scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    else:
        scheduler = make_scheduler(name, pipeline.transformer.config.learn_sigma, template=pipeline.scheduler)
    return type(pipeline).from_pipe(pipeline, scheduler=scheduler)
