"""One call of a pipeline, as a generator: the steps as they are taken, a picture on the way, then the images."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..conversion.schedulers import with_scheduler
from ..generation.interpolation import interpolate
from ..image_pipelines import DiTImg2ImgPipeline, DiTInpaintPipeline
from ..sampling.latents import decode_latents
from .limits import Call, Limits, check_call

NUM_PREVIEWS = 8  # pictures on the way, at most: each is decoded by the VAE


@dataclass
class Step:
    """A step that was taken.

    Args:
        number: Number of steps taken.
        total: Number of steps of the call.
        preview: Picture of the first image at this step, or None between two previews.
    """

    number: int
    total: int
    preview: Image.Image | None


def draw(
    pipeline: Any, call: Call, limits: Limits, image: Image.Image | None = None, mask: Image.Image | None = None
) -> Iterator[Step | list[Image.Image]]:
    """Draw what a call asks for. The pipeline stops if the iterator is closed.

    Args:
        pipeline: `DiTPipeline`.
        call: Call of a client.
        limits: Bounds of the call.
        image: Image to begin with, for the tasks "change" and "inpaint".
        mask: Mask, white where something new is drawn, for "inpaint".

    Yields:
        A `Step` for each step, then the list of images.

    Raises:
        ValueError: If a value is outside its bounds, or the call takes too long.
        FloatingPointError: If latents stop being finite.
    """
    check_call(call, limits, pipeline.transformer.config.num_classes)
    _check_picture(call, image, mask, limits)
    messages: queue.Queue[Step | list[Image.Image] | Exception] = queue.Queue()
    is_closed, deadline = threading.Event(), time.monotonic() + limits.max_seconds

    def after_step(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if time.monotonic() > deadline:
            raise ValueError(f"stopped after {limits.max_seconds:g} seconds: choose fewer steps or fewer images")
        running._interrupt = is_closed.is_set()
        total = running.num_timesteps
        is_shown = (step + 1) % -(-total // NUM_PREVIEWS) == 0
        messages.put(Step(step + 1, total, _preview(running, tensors["latents"]) if is_shown else None))
        return {}

    def work() -> None:
        try:
            messages.put(_call_pipeline(pipeline, call, image, mask, after_step))
        except Exception as error:  # noqa: BLE001  raised again below, in the thread of the caller
            messages.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while isinstance(message := messages.get(), Step):
            yield message
        if isinstance(message, Exception):
            raise message
        yield message
    finally:
        is_closed.set()
        thread.join()


def _check_picture(call: Call, image: Image.Image | None, mask: Image.Image | None, limits: Limits) -> None:
    if call.task in ("change", "inpaint") and image is None:
        raise ValueError("there is no picture to begin with: add one")
    if image is not None and max(image.size) > limits.max_side:
        raise ValueError(f"the picture is {image.width} x {image.height}: choose one of at most {limits.max_side}")
    if call.task == "inpaint" and (mask is None or mask.getbbox() is None):
        raise ValueError("nothing is marked: paint over the part that is to be drawn anew")


def _preview(pipeline: Any, latents: torch.Tensor) -> Image.Image:
    return pipeline.image_processor.postprocess(decode_latents(pipeline.vae, latents[:1], 1), "pil")[0]


def _call_pipeline(
    pipeline: Any, call: Call, image: Image.Image | None, mask: Image.Image | None, after_step: Any
) -> list[Image.Image]:
    """Call a pipeline as the code does that `snippet` writes."""
    if call.scheduler != type(pipeline.scheduler).__name__:
        pipeline = with_scheduler(pipeline, call.scheduler)
    arguments: dict[str, Any] = {
        "guidance_scale": call.guidance_scale,
        "num_inference_steps": call.num_inference_steps,
        "callback_on_step_end": after_step,
        "generator": torch.Generator().manual_seed(call.seed),
    }
    if call.task == "between":
        seeds = (call.seed, call.seed + 1)
        return interpolate(pipeline, call.labels, call.num_images, seeds, **arguments)
    if call.labels:
        arguments |= {"class_labels": list(call.labels), "num_images_per_label": call.num_images}
    else:
        arguments["num_images"] = call.num_images
    if call.task == "draw":
        return pipeline(**arguments).images
    arguments |= {"image": image, "strength": call.strength}
    if call.task == "change":
        return DiTImg2ImgPipeline.from_pipe(pipeline)(**arguments).images
    arguments["mask_image"] = mask
    return DiTInpaintPipeline.from_pipe(pipeline)(**arguments).images
