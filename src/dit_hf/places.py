"""Where a model lies: a local folder or file, or a repository on the Hub; and what a wrong name most likely means.

Libraries take every name that is no folder for a repository on the Hub, and answer a mistyped path with errors of the
network. Here one rule holds for pipelines, models, autoencoders, adapters and data sets:

1. What lies on the disk is meant, whatever the Hub holds.
2. A name that no repository can have (`./photos`, `a/b/c`, `model.pt`) is a path: without such a file it is an error.
3. Any other name is a repository, in the cache or on the Hub. If there is none, the error names both places. If there
   is one, and a folder here is called like its first half (`out` for `out/photos`), a warning says what was taken.

A folder of another kind is answered with what to pass instead. Example: `out/photos` is the folder of a training, whose
pipeline is `out/photos/pipeline`.

This file travels to the Hub as a part of `modeling_dit.py` and `pipeline_dit.py`.
"""

import difflib
import os
import re
import warnings
from pathlib import Path
from typing import Any

REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<!\.git)")  # "user/name" on the Hub
FILES = re.compile(r"\.(pt|pth|ckpt|bin|safetensors|npz|json|yaml|yml|csv|zip|tar)$", re.IGNORECASE)
CHECKPOINTS = (".pt", ".pth", ".ckpt")  # of the original code, wherever they lie
NAMES_LISTED = 5
SECONDS_TO_REACH_THE_HUB = 10.0


class NothingThere(OSError, ValueError):
    """Nothing lies where a name points: an OSError, as transformers raises, and a ValueError, as for any wrong name."""


def is_path(name: str, *, may_be_one_word: bool = False) -> bool:
    """Return whether a name is a local path: there is something, or no repository can be called so.

    Args:
        name: Name that a user gave.
        may_be_one_word: Whether a repository may have a name without a slash, as some data sets do.
    """
    if name.startswith((".", "~", os.sep)) or FILES.search(name) or os.path.exists(name):
        return True
    if "/" not in name and may_be_one_word:
        return REPOSITORY.fullmatch(f"user/{name}") is None
    return REPOSITORY.fullmatch(name) is None


def places_to_look(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `check_repository` among those of a library's `from_pretrained`."""
    names = ("cache_dir", "local_files_only", "token")
    return {name: options[name] for name in names if options.get(name) is not None}


def begins_with_folder(name: str) -> bool:
    """Return whether the first half of a name such as `out/photos` is a local folder: it may be a mistyped path."""
    return os.path.isdir(os.path.dirname(name))


def check_repository(
    name: str,
    repo_type: str = "model",
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> None:
    """Refuse the id of a repository that is neither in the cache nor on the Hub, which is asked once.

    Args:
        name: Name without a local file or folder, such as "facebook/DiT-XL-2-256".
        repo_type: "model" or "dataset".
        cache_dir: Folder of the cache; None for that of huggingface_hub.
        local_files_only: Whether to look into the cache only.
        token: Token for a private repository.

    Raises:
        ValueError: If there is no such repository or the token may not see it, or if the Hub cannot be asked. The
            message also names what the nearest local folder holds.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    what = {"model": "model", "dataset": "data set"}[repo_type]
    cached = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=repo_type), "snapshots")
    if not cached.is_dir():
        if local_files_only or constants.HF_HUB_OFFLINE:
            why = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE is set"
            missing = f"the cache has no {what} of this name either, and the Hub is not asked, as {why}"
            raise NothingThere(f"{describe_missing(name)}; {missing}")
        try:
            HfApi(token=token).repo_info(name, repo_type=repo_type, timeout=SECONDS_TO_REACH_THE_HUB)
        except GatedRepoError:
            pass  # it is there: whoever loads it names what is missing
        except RepositoryNotFoundError as error:
            missing = f"the Hub has no {what} of this name either, or the token may not see it"
            raise NothingThere(f"{describe_missing(name)}; {missing}") from error
        except HfHubHTTPError:
            return  # whoever loads it tries again
        except (HTTPError, OSError) as error:
            unknown = f"the Hub, which may have a {what} of this name, cannot be reached ({type(error).__name__})"
            raise NothingThere(f"{describe_missing(name)}; {unknown}") from error
    if begins_with_folder(name):
        folder = os.path.dirname(name)
        warnings.warn(f"{name} is taken from the Hub: the folder {folder} here does not hold it", stacklevel=2)


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


def check_pipeline_source(source: str | Path, *, asks_for_each: bool = False, **hub: Any) -> None:
    """Refuse what can only be a mistake in place of a pipeline: its folder, its id on the Hub, or a checkpoint's file.

    Args:
        source: Folder, file, or id on the Hub.
        asks_for_each: Whether to look for each id on the Hub. Otherwise only one whose first half is a local folder is
            looked for, because a pipeline that is loaded next asks for all others.
        **hub: Arguments of `check_repository`.

    Raises:
        ValueError: If there is nothing, or a file or folder of another kind; the message says what to pass instead.
    """
    _check(source, "model_index.json")
    if not os.path.exists(source) and (asks_for_each or begins_with_folder(str(source))):
        check_repository(str(source), **hub)


def check_model_source(source: str | Path, subfolder: str | None = None, **hub: Any) -> None:
    """Refuse what can only be a mistake in place of the folder of one model, such as an autoencoder, or its id.

    Args:
        source: Folder, or id on the Hub.
        subfolder: Folder of the model in it.
        **hub: Arguments of `check_repository`.

    Raises:
        ValueError: As in `check_pipeline_source`; also if the source is a checkpoint's file, or if an id is that of no
            repository.
    """
    if Path(source).is_file():
        raise ValueError(describe_file(Path(source)) or f"{source} is a file: pass the folder of a model")
    _check(source, os.path.join(subfolder or "", "config.json"))
    if not os.path.exists(source):
        check_repository(str(source), **hub)


def check_adapter_source(source: str | Path, **hub: Any) -> None:
    """Refuse what is neither the folder of an adapter nor an id on the Hub.

    Args:
        source: Folder, or id on the Hub.
        **hub: Arguments of `check_repository`.

    Raises:
        ValueError: If there is nothing, or a file; or if the id is that of no repository.
    """
    if Path(source).is_file():
        raise ValueError(f"{source} is a file: pass the folder of an adapter")
    if is_path(str(source)) and not os.path.exists(source):
        raise NothingThere(describe_missing(str(source)))
    if not os.path.exists(source):
        check_repository(str(source), **hub)


def _check(source: str | Path, needed: str) -> None:
    path = Path(source)
    if path.is_file():
        if (told := describe_file(path)) is not None:
            raise ValueError(told)
    elif path.is_dir():
        if not (path / needed).is_file():
            raise ValueError(describe_folder(path, needed))
    elif is_path(str(source)):
        raise NothingThere(describe_missing(str(source)))
