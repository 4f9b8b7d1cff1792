"""Where a model lies: a local folder or file, or a repository on the Hub; and what a wrong name most likely means.

Libraries take every name that is no folder for a repository on the Hub, and answer a mistyped path with errors of the
network. Here a name that can only be a path is refused at once, and a folder of another kind is answered with what to
pass instead. Example: `out/photos` is the folder of a training, whose pipeline is `out/photos/pipeline`.

This file travels to the Hub as a part of `modeling_dit.py` and `pipeline_dit.py`, and needs the standard library only.
"""

import difflib
import os
import re
from pathlib import Path

REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<!\.git)")  # "user/name" on the Hub
FILES = re.compile(r"\.(pt|pth|ckpt|bin|safetensors|npz|json|yaml|yml|csv|zip|tar)$", re.IGNORECASE)
CHECKPOINTS = (".pt", ".pth", ".ckpt")  # of the original code, wherever they lie
NAMES_LISTED = 5


def is_path(name: str, *, may_be_one_word: bool = False) -> bool:
    """Return whether a name can only be meant as a local path, whether there is something or not.

    Args:
        name: Name that a user gave.
        may_be_one_word: Whether a repository may have a name without a slash, as some data sets do.
    """
    if name.startswith((".", "~", os.sep)) or FILES.search(name) or os.path.exists(name):
        return True
    if "/" not in name and may_be_one_word:
        return REPOSITORY.fullmatch(f"user/{name}") is None
    return REPOSITORY.fullmatch(name) is None or os.path.isdir(os.path.dirname(name))


def describe_missing(name: str) -> str:
    """Say that there is no such file or folder, and what the nearest folder holds instead."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    while not path.parent.is_dir():
        path = path.parent
    present = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, present, n=3) or present[:NAMES_LISTED]
    hint = f": {path.parent} holds {', '.join(near)}" if near else f": {path.parent} is empty"
    return f"there is no file or folder {name}{hint if path.parent.parent != path.parent else ''}"


def describe_folder(folder: Path, needed: str = "model_index.json") -> str:
    """Say what a folder is that lacks a file, and what to pass instead.

    Args:
        folder: Folder.
        needed: File that it lacks: `model_index.json` of a pipeline, or `config.json` of a model.
    """
    if (folder / "pipeline" / "model_index.json").is_file():
        return f"{folder} is the folder of a training: pass its pipeline, {folder / 'pipeline'}"
    if (folder / "status.json").is_file() or (folder / "checkpoints").is_dir():
        return f"{folder} is the folder of a training that has saved no pipeline yet: see `dit-hf status {folder}`"
    if (folder / "manifest.json").is_file() or any(folder.glob("step-*/manifest.json")):
        training = next((each for each in folder.parents if (each / "settings.yaml").is_file()), folder.parent)
        return (
            f"{folder} holds checkpoints, from which only their own training goes on: pass its pipeline, "
            f"{training / 'pipeline'}"
        )
    if (folder / "adapter_config.json").is_file():
        return f"{folder} is an adapter: pass the model that it was trained for, then call load_lora_weights"
    if (folder / "model_index.json").is_file():
        parts = sorted(file.parent.name for file in folder.glob("*/config.json"))
        return f"{folder} is a pipeline with {', '.join(parts)}: pass the folder of one of them"
    if (folder.parent / "model_index.json").is_file():
        return f"{folder} is a part of a pipeline: pass {folder.parent}"
    if inner := sorted(file.parent for file in folder.glob("*/model_index.json")):
        return f"{folder} is no pipeline, but holds some: pass {' or '.join(map(str, inner[:NAMES_LISTED]))}"
    present = sorted(entry.name for entry in folder.iterdir())
    held = f"but {', '.join(present[:NAMES_LISTED])}" if present else "as it is empty"
    return f"{folder} has no {needed}, {held}: pass a folder that save_pretrained wrote"


def describe_file(file: Path) -> str | None:
    """Say what to pass instead of a file that belongs to a saved model; None for another file."""
    if file.suffix.lower() in CHECKPOINTS:
        return None
    for folder in (file.parent, file.parent.parent):
        if (folder / "model_index.json").is_file():
            return f"{file} is a file of a pipeline: pass its folder, {folder}"
    if (file.parent / "config.json").is_file():
        return f"{file} is a file of a model: pass its folder, {file.parent}"
    if file.suffix.lower() in (".json", ".yaml", ".yml", ".md", ".txt", ".py", ".png", ".jpg", ".jpeg", ".npz", ".csv"):
        return f"{file} is no checkpoint: pass the folder of a pipeline, or a checkpoint such as model.pt"
    return None


def check_pipeline_source(source: str | Path) -> None:
    """Refuse what can only be a mistake in place of a pipeline: its folder, its id on the Hub, or a checkpoint's file.

    Raises:
        ValueError: If the source is a path and there is nothing, or a file or folder of another kind; the message says
            what to pass instead.
    """
    _check(source, "model_index.json")


def check_model_source(source: str | Path, subfolder: str | None = None) -> None:
    """Refuse what can only be a mistake in place of the folder of one model, such as an autoencoder, or its id.

    Args:
        source: Folder, or id on the Hub.
        subfolder: Folder of the model in it.

    Raises:
        ValueError: As in `check_pipeline_source`; also if the source is a checkpoint's file.
    """
    if Path(source).is_file():
        raise ValueError(describe_file(Path(source)) or f"{source} is a file: pass the folder of a model")
    _check(source, os.path.join(subfolder or "", "config.json"))


def _check(source: str | Path, needed: str) -> None:
    path = Path(source)
    if path.is_file():
        if (told := describe_file(path)) is not None:
            raise ValueError(told)
    elif path.is_dir():
        if not (path / needed).is_file():
            raise ValueError(describe_folder(path, needed))
    elif is_path(str(source)):
        raise ValueError(describe_missing(str(source)))
