"""A recipe for 20 to 2,000 images of one's own: settings of a fine-tuning in minutes to hours.

`dit-hf finetune FOLDER` takes these values, and `examples/configs/own_images.yaml` holds them as a file to change.
Size, VAE, objective, schedule and resolution are not here, because they are those of `init_from`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parse import parse_settings

OWN_IMAGES: dict[str, Any] = {
    "cache_latents": 4_000,  # each image and its mirror image are encoded once
    "train_batch_size": 16,
    "max_train_steps": 1000,
    "learning_rate": 1e-3,  # suits the shipped model of 7 million parameters; 1e-4 suits DiT-XL/2
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 20,
    "max_grad_norm": 1.0,
    "ema_decay": 0.98,  # an average over about 50 steps; the paper's 0.9999 would keep the weights of the start
    "logging_steps": 20,
    "checkpointing_steps": 250,
    "validation_steps": 250,
    "validation_inference_steps": 25,
    "guidance_scale": 3.0,
}


def finetune_arguments(folder: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a fine-tuning on a folder of images: this recipe, and what the user changes of it.

    Args:
        folder: Folder of images, one folder per class.
        arguments: The user's flags, after a YAML file that replaces the recipe if there is one.

    Raises:
        ValueError: If the folder is missing, a setting is wrong, or no model to start from is named.
    """
    if not Path(folder).expanduser().is_dir():
        raise ValueError(f"{folder} is no folder: pass a folder of images with one folder per class")
    complete = [*arguments, "--dataset_name", folder]
    if not arguments or not arguments[0].endswith((".yaml", ".yml")):
        recipe = {**OWN_IMAGES, "output_dir": f"out/{Path(folder).resolve().name}"}
        complete = [text for name, value in recipe.items() for text in (f"--{name}", str(value))] + complete
    if parse_settings(complete).init_from is None:
        raise ValueError(
            "--init_from is missing: name the model to start from, a pipeline's folder or an id on the Hub such as "
            "facebook/DiT-XL-2-256"
        )
    return complete
