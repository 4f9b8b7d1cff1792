"""Checks of files that options name, which run while the command line is parsed: before any import or download."""

import glob
import os
from pathlib import Path

from ..places import check_pipeline_source, describe_missing, is_path


def check_source(name: str | None) -> str | None:
    """Refuse a local file or folder that does not exist; a name such as "my/images" may be an id on the Hub.

    Raises:
        ValueError: If the name can only be a local path, and there is nothing.
    """
    if name is None or "://" in name or glob.has_magic(name) or os.path.exists(os.path.expanduser(name)):
        return name
    if is_path(name, may_be_one_word=True):
        raise ValueError(describe_missing(name))
    return name


def check_saved_pipeline(name: str | None) -> str | None:
    """Refuse what `check_pipeline` refuses, and the file of a checkpoint, which has no autoencoder.

    Raises:
        ValueError: If the name is none of a pipeline, with what to do instead.
    """
    if name is not None and check_pipeline(name) and os.path.isfile(name):
        raise ValueError(
            f"{name} is a checkpoint without an autoencoder: run `dit-hf convert {name} FOLDER --vae "
            "stabilityai/sd-vae-ft-ema` (--vae none for a model of pixels), and pass FOLDER"
        )
    return name


def check_present(path: Path | None) -> Path | None:
    """Refuse a path where there is nothing.

    Raises:
        ValueError: If there is no such file or folder, with what the nearest folder holds.
    """
    if path is not None and not path.exists():
        raise ValueError(describe_missing(str(path)))
    return path


def check_all_present(paths: list[Path]) -> list[Path]:
    """Refuse paths of which one is missing, as `check_present` does."""
    for path in paths:
        check_present(path)
    return paths


def check_pipeline(name: str | None) -> str | None:
    """Refuse what can only be a mistake in place of a pipeline: its folder, its id on the Hub, or a checkpoint's file.

    Raises:
        ValueError: If the name is a mistyped path, or a file or folder of another kind, with what to pass instead.
    """
    if name is not None:
        check_pipeline_source(name)
    return name


def check_extractor(name: str) -> str:
    """Refuse an extractor in a file that does not exist.

    Raises:
        ValueError: If the name is neither a known extractor nor a class in a file.
    """
    file = name.rpartition(":")[0]
    if name not in ("inception", "dinov2") and not file.endswith(".py"):
        raise ValueError(f"extractor {name!r} is unknown: choose inception, dinov2, or a class as my_network.py:Name")
    if file and not os.path.isfile(file):
        raise ValueError(f"there is no file {file}, which the extractor {name!r} names")
    return name


def check_labels(labels: str | None) -> str | None:
    """Refuse labels that are neither a scheme nor a file.

    Raises:
        ValueError: If there is no such file.
    """
    if labels in (None, "random", "balanced") or os.path.isfile(labels):
        return labels
    raise ValueError(f"labels={labels!r}: choose from random, balanced, or a text file with a label on each line")


def check_num_images(num_images: int | None, labels: str | None) -> None:
    """Refuse to draw an unknown number of images: only a file of labels implies it.

    Raises:
        ValueError: If the number is missing.
    """
    if num_images is None and labels in (None, "random", "balanced"):
        raise ValueError("--num-images is missing: give the number of images to draw, or a file of labels")
