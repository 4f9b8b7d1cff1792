"""The files of a diffusers model: its configuration and its weights, in a folder or on the Hub."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..places import check_repository, describe_missing, is_path, places_to_look
from ..weight_files import refuse_two_forms
from .safe_load import read_checkpoint
from .stored import CheckpointError, StoredTensor, readable

WEIGHTS = "diffusion_pytorch_model"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def model_folder(
    source: str | os.PathLike,
    subfolder: str | None,
    variant: str | None,
    use_safetensors: bool | None,
    hub: Mapping[str, Any],
) -> Path:
    """Return the folder of a model's configuration and weights; an id on the Hub is downloaded.

    Args:
        source: Folder of the model or of its pipeline, or an id on the Hub.
        subfolder: Place of the model in the source; None looks for `transformer`, then in the source itself.
        variant: Variant of the weights, such as "fp16", or None.
        use_safetensors: True for safetensors only, False for `.bin` only, None for either.
        hub: Arguments of `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: If there is no model.
    """
    inner = [subfolder] if subfolder is not None else ["transformer", ""]
    root = Path(source)
    if not root.is_dir():
        if is_path(str(source)):
            raise CheckpointError(describe_missing(str(source)))
        check_repository(str(source), **places_to_look(dict(hub)))
        suffixes = ["bin"] if use_safetensors is False else ["safetensors"]
        root = _download(str(source), inner, suffixes, hub)
        if use_safetensors is None and not any(weight_files(root / part, variant, None) for part in inner):
            root = _download(str(source), inner, ["bin"], hub)
    for part in inner:
        if (root / part / "config.json").is_file():
            return root / part
    raise CheckpointError(f"{source} holds no diffusers model: there is no {inner[0]}/config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: If the file holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not an object of names and values")
    return content


def read_weights(folder: Path, variant: str | None, use_safetensors: bool | None) -> dict[str, StoredTensor]:
    """List the tensors of a model's folder by their keys.

    Raises:
        CheckpointError: If the weights are missing or damaged.
        ValueError: If the folder holds them twice, as one file and as shards.
    """
    files = weight_files(folder, variant, use_safetensors)
    if not files:
        kinds = {None: "safetensors or .bin", True: "safetensors", False: ".bin"}[use_safetensors]
        raise CheckpointError(f"{folder.name} has a configuration and no weights in {WEIGHTS} files of {kinds}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder.name} lacks {file.name}, which its index names")
    tensors = {key: value for file in files for key, value in read_checkpoint(file).items()}
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(f"{readable(key)} is a {type(value).__name__}: a state dict has tensors by name only")
    return tensors


def weight_files(folder: Path, variant: str | None, use_safetensors: bool | None) -> list[Path]:
    """Return the files of the weights: the variant's if it has some, safetensors before others, one file or shards.

    Raises:
        ValueError: If there are both one file and shards, of which one is outdated.
    """
    suffixes = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}[use_safetensors]
    for mark in dict.fromkeys([f".{variant}" if variant else "", ""]):
        if folder.is_dir():
            refuse_two_forms(folder, mark[1:] or None)
        for suffix in suffixes:
            whole, index = folder / f"{WEIGHTS}{mark}.{suffix}", folder / f"{WEIGHTS}.{suffix}.index{mark}.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                names = read_json(index).get("weight_map")
                if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                    raise CheckpointError(f"{index.name} has no weight_map from keys to names of files")
                return [folder / Path(name).name for name in sorted(set(names.values()))]  # none outside the folder
    return []


def _download(repository: str, folders: list[str], suffixes: list[str], hub: Mapping[str, Any]) -> Path:
    names = ["config.json", *(f"{WEIGHTS}*.{suffix}" for suffix in suffixes), f"{WEIGHTS}*.index*.json"]
    patterns = [f"{folder}/{name}".removeprefix("/") for folder in folders for name in names]
    return Path(snapshot_download(repository, allow_patterns=patterns, **hub))
