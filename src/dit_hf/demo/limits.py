"""What a client asks for, and the bounds that the server holds it to; the page's own bounds can be circumvented."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..sampling.schedulers import SCHEDULERS

Task = Literal["draw", "change", "inpaint", "between"]

MAX_SEED = 2**32 - 1  # torch's CPU generator keeps 32 bits


@dataclass(frozen=True)
class Limits:
    """Bounds of a call and of the server.

    Args:
        max_steps: Number of sampling steps of a call, at most.
        max_images: Number of images of a call, at most.
        max_guidance: Scale of guidance, at most.
        max_seconds: Seconds that a call may take; then it is stopped.
        max_waiting: Number of calls that may wait; further ones are refused at once.
        max_upload_mb: Size of an uploaded file in MB, at most.
        max_request_mb: Size of any other request in MB, at most.
        max_side: Width and height of an uploaded image in pixels, at most.
    """

    max_steps: int = 250
    max_images: int = 8
    max_guidance: float = 20.0
    max_seconds: float = 120.0
    max_waiting: int = 32
    max_upload_mb: int = 10
    max_request_mb: int = 1
    max_side: int = 4096


@dataclass(frozen=True)
class Call:
    """One call of a pipeline, checked by `check_call`.

    Args:
        task: Tab of the page that the call comes from.
        labels: Class ids: one, or for "between" two; none for an unconditional model.
        num_images: Number of images; for "between" that of the frames, both ends included.
        guidance_scale: Scale of guidance; 1 is no guidance.
        num_inference_steps: Number of sampling steps.
        seed: Seed of the noise.
        scheduler: Class name of a scheduler of diffusers.
        strength: Share of the steps that an image to begin with is changed by; None without one.
    """

    task: Task
    labels: tuple[int, ...]
    num_images: int
    guidance_scale: float
    num_inference_steps: int
    seed: int
    scheduler: str
    strength: float | None = None


def check_call(call: Call, limits: Limits, num_classes: int) -> None:
    """Refuse a call with a number outside its bounds.

    Args:
        call: Call as a client wants it, with values of any type.
        limits: Bounds.
        num_classes: Number of classes of the model.

    Raises:
        ValueError: If a value is outside its bounds or of another type.
    """
    wanted = {"between": 2}.get(call.task, 1) if num_classes else 0
    if len(call.labels) != wanted:
        raise ValueError(f"choose {wanted} of the classes, instead of {len(call.labels)}")
    for label in call.labels:
        _check("the class", label, 0, num_classes - 1, whole=True)
    least = 2 if call.task == "between" else 1
    _check("the number of images", call.num_images, least, limits.max_images, whole=True)
    _check("the number of steps", call.num_inference_steps, 1, limits.max_steps, whole=True)
    _check("the guidance", call.guidance_scale, 1, limits.max_guidance)
    _check("the seed", call.seed, 0, MAX_SEED, whole=True)
    if call.scheduler not in SCHEDULERS:
        raise ValueError(f"there is no scheduler {str(call.scheduler)[:40]!r}: choose one of the list")
    if call.task in ("change", "inpaint"):
        _check("the strength", call.strength, 0.01, 1)


def _check(name: str, value: Any, least: float, most: float, whole: bool = False) -> None:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} is {str(value)[:40]}: choose {kind} from {least:g} to {most:g}")
