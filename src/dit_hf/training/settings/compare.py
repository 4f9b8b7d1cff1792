"""Whether a training may resume from a checkpoint: which settings differ, and which of them matter."""

from typing import Any

from .model_fields import in_one_form
from .table import TrainSettings, all_rows


def changed_settings(
    before: dict[str, Any], now: TrainSettings, world_size_before: int = 1, world_size: int = 1
) -> dict[str, tuple[Any, Any]]:
    """Return the settings that would change what the steps of a resumed training compute: name -> (before, now).

    A step takes the same images however they are divided over processes and accumulated batches. So of batch size,
    accumulation and processes only the product counts.

    Args:
        before: Settings of the checkpoint. A setting that it lacks had its default.
        now: Settings of this run.
        world_size_before: Number of processes that wrote the checkpoint.
        world_size: Number of processes now.
    """
    before, after = in_one_form(before), in_one_form(now.to_dict())
    free = {"always", "with equal images per step"}
    if now.lr_scheduler.startswith("constant"):
        free.add("with a constant learning rate")
    changes = {
        name: (old, new)
        for name, rules in all_rows().items()
        if rules.may_change not in free
        and (old := before.get(name, rules.default)) != (new := after.get(name, rules.default))
    }
    images_before = images_a_step(before, world_size_before)
    if (images := images_a_step(after, world_size)) != images_before:
        changes["images a step"] = (images_before, images)
    return changes


def images_a_step(settings: dict[str, Any], world_size: int) -> int:
    """Return the number of images of one optimiser step, over all processes."""
    return settings["train_batch_size"] * settings["gradient_accumulation_steps"] * world_size
