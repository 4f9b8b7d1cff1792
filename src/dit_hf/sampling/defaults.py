"""What a call of a pipeline takes where it names no guidance or no number of steps.

A pipeline may state both in its `model_index.json`. Without a statement, the scale of guidance is 4, as in diffusers'
`DiTPipeline`, and the number of steps is the scheduler's usual one.
"""

from collections.abc import Mapping
from typing import Any

from .guidance import check_scale
from .limits import check_count
from .schedulers import traits_of

GUIDANCE_SCALE = 4.0

# What `model_index.json` keeps of a pipeline besides its parts.
PIPELINE_SETTINGS = ("id2label", "guidance_channels", "prediction_type", "guidance_scale", "num_inference_steps")


def check_own_guidance(scale: Any, config: Any) -> float | None:
    """Return the scale of guidance that a pipeline states, as it is stored.

    Args:
        scale: Finite number from 0 on; None for a pipeline that states nothing.
        config: Configuration of the model.

    Raises:
        ValueError: If the value is none, or the model has no null class to guide with.
    """
    if scale is None:
        return None
    check_scale(scale)
    if not isinstance(scale, (int, float)):
        raise ValueError(f"guidance_scale={scale!r}: a pipeline stores a number; pass a guider in the call")
    if scale > 1 and not config.has_null_class:
        raise ValueError(f"guidance_scale={scale}: the model has no null class to guide with, leave the scale out")
    return float(scale)


def check_own_steps(steps: Any, scheduler: Any) -> dict[str, int] | None:
    """Return the numbers of steps that a pipeline states, by the class name of the scheduler that they are for.

    Args:
        steps: Number of steps of `scheduler`, or numbers by class name; None for a pipeline that states nothing.
        scheduler: Scheduler of the pipeline.

    Raises:
        ValueError: If a number is outside 1..T.
    """
    if steps is None:
        return None
    stated = dict(steps) if isinstance(steps, Mapping) else {type(scheduler).__name__: steps}
    for number in stated.values():
        check_count("num_inference_steps", number, scheduler.config.num_train_timesteps)
    return stated or None


def usual_guidance_scale(pipeline: Any) -> float:
    """Return the scale of guidance of a call that names none."""
    own = pipeline.config.get("guidance_scale")
    return GUIDANCE_SCALE if own is None else own


def usual_num_steps(pipeline: Any) -> int:
    """Return the number of steps of a call that names none: what the pipeline states for its present scheduler."""
    scheduler, own = pipeline.scheduler, pipeline.config.get("num_inference_steps") or {}
    most = scheduler.config.num_train_timesteps
    return min(own.get(type(scheduler).__name__) or traits_of(scheduler).num_steps, most)
