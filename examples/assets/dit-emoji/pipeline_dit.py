# Made of betas.py, synonyms.py, extras.py, files.py, saved_code.py, places.py, callbacks.py, guidance.py, vae.py, limits.py, turns.py, class_names.py, images.py, weight_files.py, lora_pipeline.py, schedulers.py, latents.py, class_names.py, defaults.py, rehearsal.py, denoising.py, sources.py, pipeline_dit.py, image_pipelines.py.

import base64
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
import contextlib
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
import copy
from dataclasses import dataclass
import difflib
import functools
from functools import partial
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import math
from numbers import Real
import operator
import os
from pathlib import Path, PurePath
import re
import shutil
import struct
from tempfile import TemporaryDirectory
import threading
from typing import Any, Literal, NamedTuple
import unicodedata
import warnings
from weakref import WeakKeyDictionary
import zlib

from PIL import Image, ImageChops, UnidentifiedImageError
from diffusers import (
    DDIMInverseScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.models import CacheMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
import numpy as np
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from transformers import PreTrainedModel

# --- betas.py ---
# The fields of a noise schedule, named as in the configurations of diffusers' schedulers.
#
# They stand on the ground floor because training, conversion and sampling all carry them from one place to another.

BETA_FIELDS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")

# What the DiT paper, and so every checkpoint of the original, was trained with.
PAPER_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}

# --- synonyms.py ---
# Which labels list synonyms: those of ImageNet's 1,000 labels that have a comma, such as "tench, Tinca tinca".
#
# A comma in any other label belongs to the name: "beach, summer" is one class of holiday photos, and "summer" is none.
# The labels themselves are in `conversion/imagenet_names.py`. This file travels to the Hub in every `pipeline_dit.py`, so
# it keeps 24 bits of each label's CRC-32 in place of its words: another label passes for one of these once in 34,000.

IMAGENET = """
ACNhACxDAD+9APJMASwIAUZ+AiFtAqdSArXGAtvXAupxBE72BKFbBYFTBa3lBjYMBkOEBmo1CGIbCGlhCQe7CZSCCfJECfeVClG+Cw8ADEkYDJTNDJwl
Dc+qDd/pDxMiD5DzEAUEEDU3EL+YEL+7ETsREk/lEyFhFdlQF8dMGAsVGHEjGSHEGWNLGcllG6PPG6odG6rQHCq+HRp/HeaSHi/hHkblHnrIHrUaHtxo
HxYcHy5AH0JKIG7tIUUpIV+8IW4oIZcEIe/SI1yKI8SkJGD0JMkrJM/6JO62JVTZJZSMJew9JhKCJhsFJiOPJjjOJoeXJpVkJsgKJvCkJvGjKH8qKLuZ
K1c4Lbi2MnZ2MwXmM4ktNBmxNC3tNHI/NZCZNb0uN07dN8qfN8+mOC3NOE0AOHDQOJAyOPcjOXDVOgtVPBc6PCOLPI+xPT1gPd0JPgcMPj1cP1bPQG9b
QHW8QLKnQLsCQNwrQOqEQZCHQfPpQqRcQ8NmRBG8RO+yRTBiRaGhRiiDRkEdR1Y5R+crSG2FSMJNSPbBSVnASXy5SZf5ScruSiONSkNpSkQXSwJgS4TK
S/eiTM7OTUiCTd5MTeCZTpWpTxibUAnKUMiLURCYUTJpUm/PUz6EU58dVErbVKj6Vhb+VnGMVncIVpSTVsFaWEMqWPnrWY4SWpw9WrJ4Wu+nWxiiW6h1
XPsJXi+VXztJXzuIX7/0YBhYYJbYYJ1BYSn1YeCSYlA7Y1aeY4qKZGSYZSB7ZatjZzvTZ2yUZ4AJZ5saaACjaBZ9aMHUaMUfaSjcaYt+aZBnaZ5wahl+
ajOPalewanV6ars/awm9a1+ea8rpa/cHbFJkbPYWbRHobw5ZbzWacHJ/cJincLN8cSyacY5/cjyXcwgRcygLc6TDc+JzdFC5dGIEdHKUdJCldMMYdl7h
d5DKd9B8eJnaecoEespUeul0ewjwfENIfbL9fb6GfdMAftVaf6KjgOJJgTJZgUukgX46gi/mgoqxgzOqg4WFg6ljg64ahIfuhWd2hXQrhcVfhmRkh3VT
h6f2iC4QiHM6iLI8ieoLiiKfis/oi7pVi/lijGSwjHRGjLrDjPmpjP9Xjcm2jiuljyFZjzCzj+AakB9kkDhEkPhZkTwUkoPjkt2lk87qlJHKlNyglVHd
lY/bl2ckmMnWmNIpmYoomYrOmjQcmlDGmoHbmpk/mvm3mv5Am1Tem5CqnEq5nHKvnH2FnPAlnVu9nY4nndNTnd5Ynfq3nqDMnuI2nzXon4cqoCBHpYfE
pYmApaEQpfncpnUaprZNp21cqJuJqP7CqaCCqcuwqpKkqy4lq0k2q8harLvrribErtbert3hrvHGr1sAr7wcr+r9sAiHsC1msWwBsXlqsq/6stNkstym
sv/Ts0T8s2t5tiaFtuIFtveztvvyt2unt+B1uBLbuDlKuLtJuM0yuUcOuVRKuXYEufWTutT0u3Aeu6J0u+mhvC4tvJL9vLNOvPcyvSb7vUMevlWivmXd
vm+8vuRHv6x2wB2qwT7swipwwsVKwsW0xGCGxJCExL77xPFJxRLuxYY1xbvLxch/x2gTyIcZyaKhytaiyu7uyzsyy118zJiWzOVqzY2MzhuAzk5kzyha
0AGk0F2Z0F3Y0YQy0b+10mtx0ozP0v+/0xWP01wl04/91KbJ1NuF1oZQ1pHf12vq2GH52UBs2Zzn2a9e2eia2hur24eF3Voz3YpM3iGV3k0Z3qii37Xe
4IkI4P4I4SxS4UJt4XZc4lyV4n+A4rA24vw240YE43zH483w5fbi5kV85kpQ5xY85yfG599+6EHF6Pib6ayN6gjQ6rwv6tQy6zu2641R66/u7S7p7dWF
7hoe7hwY7qek7tzv8GUc8Ok88QOI8ZRb8qax9BIt9Ntw9UNY+Kvg+d2v+gmL+mdd+2kK+8AE++zn/BPV/BrP/KU//PJ8/Rx0/aJB/7F8/7ls//EI
"""  # 3 bytes for each label, in ascending order


def lists_synonyms(label: str) -> bool:
    """Return whether a label is one of ImageNet's that list several names between commas.

    Args:
        label: Label as `normal_name` returns it: with one space after each comma.
    """
    return "," in label and checksum(label) in IMAGENET_CHECKSUMS


def checksum(label: str) -> bytes:
    """Return the last 24 bits of a label's CRC-32; (3,)."""
    return zlib.crc32(label.encode("utf-8", "backslashreplace")).to_bytes(4, "big")[1:]


def _in_threes(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[start : start + 3] for start in range(0, len(joined), 3))


IMAGENET_CHECKSUMS = _in_threes(base64.b64decode(IMAGENET))

# --- extras.py ---
# Packages that only some purposes need: whether they are installed, and the sentence that says how to install them.
#
# The command names the packages, not an extra of this package: `pip install peft` is right in a checkout and for an
# installed package alike; `pip install "dit-hf[lora]"` is wrong in the one, and `pip install ".[lora]"` in the other.
#
# This file travels to the Hub as a part of `pipeline_dit.py`.

# Module -> its package on PyPI. setup.py declares them as extras.
PACKAGES = {
    "deepspeed": "deepspeed", "gradio": "gradio", "onnx": "onnx", "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript", "openvino": "openvino", "peft": "peft", "pillow_heif": "pillow-heif",
    "torchao": "torchao",
}  # fmt: skip


def is_installed(module: str) -> bool:
    """Return whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def how_to_install(*packages: str) -> str:
    """Return what to do about missing packages: "run `pip install onnx onnxscript`".

    Args:
        *packages: Names on PyPI, with a version if one is needed: "openvino>=2025.4".
    """
    names = [f"'{package}'" if set(package) & set("<>=![") else package for package in packages]
    return f"run `pip install {' '.join(names)}`"


def require(purpose: str, *modules: str) -> None:
    """Refuse to go on without modules of `PACKAGES`.

    Args:
        purpose: What needs them, as the message begins: "the demo".
        *modules: Modules, all of which are needed.

    Raises:
        ImportError: If one is missing; the message says how to install those that are.
    """
    missing = [PACKAGES[module] for module in modules if not is_installed(module)]
    if missing:
        what = (
            f"package {missing[0]}, which is" if len(missing) == 1 else f"packages {' and '.join(missing)}, which are"
        )
        raise ImportError(f"{purpose} needs the {what} not installed: {how_to_install(*missing)}")

# --- files.py ---
# Files and folders that are either whole or not there: written under a hidden name, flushed to the disk, then renamed.
#
# The hidden name of `weights.npz` is `.weights.npz.PROCESS.partial`; that of the folder `pipeline` is
# `.pipeline.PROCESS.partial`. A process that is killed leaves such a name behind, and `remove_leftovers` deletes it.
#
# Each operation on the disk is announced before it happens, so that a caller can watch a save:
#
#     with watched(lambda operation, path: print(operation, path.name)):
#         write_text(Path("status.json"), "{}")  # write, flush, rename, flush

PARTIAL = ".partial"  # suffix of what is not whole yet
REPLACED = ".replaced"  # suffix of a folder whose successor is about to take its name
DELETED = ".deleted"  # suffix of a folder whose files are being deleted

Watcher = Callable[[str, Path], None]  # operation ("create", "write", "flush", "rename" or "delete"), path
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Call `watcher` before each operation on the disk that this thread does through this module inside the block.

    What the watcher raises ends the operation before it has begun.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def announce(operation: str, path: Path) -> None:
    """Tell the watcher of this thread, if it has one, that an operation comes now.

    Args:
        operation: Name of the operation: "create" a folder, "write", "flush", "rename" or "delete".
        path: File or folder that the operation changes.
    """
    if watcher := _watcher.get():
        watcher(operation, path)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    announce("flush", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, new_path: Path) -> None:
    """Give a file or a folder another name in the same folder, in one step that a kill cannot cut in two.

    Args:
        path: File or folder, flushed.
        new_path: New name. A file of this name is replaced; a folder of this name must not exist.
    """
    announce("rename", path)
    os.replace(path, new_path)
    flush(new_path.parent)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a hidden name to write a file to, and give the file its final name if the block ends without an error.

    Args:
        path: Final name of the file, in a folder that exists. A file of this name is replaced.
    """
    partial = _hidden(path, PARTIAL)
    try:
        announce("write", partial)
        yield partial
        flush(partial)
        rename(partial, path)
    finally:
        if partial.exists():
            announce("delete", partial)
            partial.unlink()


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder to fill, and give it its final name if the block ends without an error.

    A folder that has the final name already is moved aside, and deleted after the new folder has its name. A kill
    between the two renames leaves no folder of that name; `remove_leftovers` then puts the old folder back, as does the
    next call for the same name.

    Args:
        path: Final name of the folder. Parents that are missing are made.
    """
    remove_leftovers(path.parent, path.name)
    partial = _hidden(path, PARTIAL)
    try:
        announce("create", partial)
        partial.mkdir(parents=True)
        yield partial
        for entry in [*sorted(partial.rglob("*")), partial]:
            flush(entry)
        if path.exists():
            rename(path, _hidden(path, REPLACED))
        rename(partial, path)
    finally:
        remove_leftovers(path.parent, path.name)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def remove_folder(path: Path) -> None:
    """Delete a folder; it has a hidden name before its first file is gone, so a kill leaves no half of a folder."""
    hidden = _hidden(path, DELETED)
    rename(path, hidden)
    _remove_hidden(hidden)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what killed processes left in a folder under hidden names, and put back a folder that they moved aside.

    Args:
        folder: Folder to clean; it need not exist.
        name: Final name of the files and folders, as a pattern.
    """
    for path in _find_hidden(folder, name, REPLACED):
        final = path.with_name(path.name[1:].removesuffix(REPLACED).rpartition(".")[0])
        if not final.exists():
            rename(path, final)
    for suffix in (PARTIAL, REPLACED, DELETED):
        for path in _find_hidden(folder, name, suffix):
            _remove_hidden(path)


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{suffix}")


def _find_hidden(folder: Path, name: str, suffix: str) -> list[Path]:
    return sorted(folder.glob(f".{name}.*{suffix}"))


def _remove_hidden(path: Path) -> None:
    announce("delete", path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

# --- saved_code.py ---
# The code that a saved pipeline carries, and what that code can do only if the package is installed.
#
# This file runs in two places: in the package, and beside the weights of a saved pipeline, as a part of the one file that
# `write_code` makes of the pipelines and of what they import. There, only torch, diffusers and transformers are needed.

IN_PACKAGE = __name__.startswith("dit_hf.")  # otherwise this code was loaded with a model
AUTO_MAP = {"AutoConfig": "modeling_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}
RELATIVE_IMPORT = re.compile(r"^from \.", re.MULTILINE)


def import_for(purpose: str, module: str) -> Any:
    """Import a module of the package for a method that works only with the package.

    Args:
        purpose: What needs the module, such as "push_to_hub".
        module: Full name, such as "dit_hf.hub.push".

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "dit_hf":  # what the package itself needs is missing
            raise
        raise ImportError(f"{purpose} needs the package dit-hf: pip install dit-hf") from error


def write_code(folder: Path, transformer: Any) -> None:
    """Write the code of a pipeline and of its model into its folder, and name it in the model's configuration.

    transformers looks for the model's code at the root of a repository, diffusers beside the weights.
    """
    model = getattr(transformer, "_orig_mod", transformer)  # a compiled model wraps the original
    model_class = next(cls for cls in type(model).__mro__ if cls.__name__ == "DiTModel")
    model_source = _flat_source(Path(inspect.getfile(model_class)))
    this = Path(__file__)
    pipeline_source = _flat_source(this.with_name("image_pipelines.py") if IN_PACKAGE else this)
    sources = {"pipeline_dit.py": pipeline_source, "modeling_dit.py": model_source}
    for name, source in {**sources, "transformer/modeling_dit.py": model_source}.items():
        (folder / name).write_text(source, encoding="utf-8")
    remove_older_code(folder)  # transformers copies the code of a model that came with such a folder
    for config_file in folder.glob("*/*config.json"):
        update_json(config_file, **({"auto_map": AUTO_MAP} if config_file.parent.name == "transformer" else {}))


def remove_older_code(folder: Path) -> None:
    """Remove files of code that version 0.1.0 wrote, and that no saved folder has any more."""
    for name in ("configuration_dit.py", "transformer/configuration_dit.py"):
        (folder / name).unlink(missing_ok=True)


def update_json(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file, and remove the one that says where something was loaded from."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _flat_source(file: Path) -> str:
    """Return code as one file that stands alone; code that was loaded from the Hub is one already."""
    source = file.read_text(encoding="utf-8")
    if RELATIVE_IMPORT.search(source):
        source = import_for("saving this code", "dit_hf.hub.flatten").flatten(file)
    return source

# --- places.py ---
# Where a model lies: a local folder or file, or a repository on the Hub; and what a wrong name most likely means.
#
# Libraries take every name that is no folder for a repository on the Hub, and answer a mistyped path with errors of the
# network. Here one rule holds for pipelines, models, autoencoders, adapters and data sets:
#
# 1. What lies on the disk is meant, whatever the Hub holds.
# 2. A name that no repository can have (`./photos`, `a/b/c`, `model.pt`) is a path: without such a file it is an error.
# 3. Any other name is a repository, in the cache or on the Hub. If there is none, the error names both places. If there
#    is one, and a folder here is called like its first half (`out` for `out/photos`), a warning says what was taken.
#
# A folder of another kind is answered with what to pass instead. Example: `out/photos` is the folder of a training, whose
# pipeline is `out/photos/pipeline`.
#
# This file travels to the Hub as a part of `modeling_dit.py` and `pipeline_dit.py`.

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

# --- sampling/callbacks.py ---
# Watching a call of a pipeline: a function that is called after each step, and a way to stop.
#
# A pipeline may sample in several threads at once. So a callback gets a copy of the pipeline that belongs to its call,
# with the scheduler and the number of timesteps of that call. To stop, the callback sets `pipeline._interrupt = True` on
# this copy, which ends its own call; the same on the pipeline itself, by any thread, ends all calls that run.

class Watched:
    """Part of a pipeline that callbacks look at, named as in the pipelines of diffusers."""

    scheduler: SchedulerMixin
    _callback_tensor_inputs = ["latents"]
    _num_timesteps = 0
    _interruptions = 0  # number of them: a flag would have to be reset, by one call before another has seen it
    _interruptions_before = 0

    def _for_one_call(self) -> Any:
        """Return a copy that shares the models and has a scheduler of its own, for the duration of a call."""
        call = copy.copy(self)
        call.scheduler = copy.deepcopy(self.scheduler)
        call._interruptions, call._interruptions_before = 0, self._interruptions
        return call

    @property
    def num_timesteps(self) -> int:
        """Number of evaluations of the model in this call; in the pipeline itself, in the call that began last."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether this call is to end after its step."""
        return self._interruptions > 0

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._interruptions += bool(value)


def check_callback(callback: Any) -> None:
    """Refuse an official callback of diffusers that needs what a DiT does not have.

    Raises:
        ValueError: If the callback is not callable, needs other tensors than the latents, or an image prompt adapter.
    """
    for one in callback.callbacks if isinstance(callback, MultiPipelineCallbacks) else [callback]:
        if one is not None and not callable(one):
            raise ValueError(f"callback_on_step_end={one!r}: pass a function, or a PipelineCallback of diffusers")
        missing = [name for name in getattr(one, "tensor_inputs", []) if name not in Watched._callback_tensor_inputs]
        if missing or isinstance(one, IPAdapterScaleCutoffCallback):
            needs = f"the tensors {', '.join(missing)}" if missing else "an image prompt adapter"
            raise ValueError(
                f"{type(one).__name__} needs {needs}, and a DiT has latents only: to end guidance early, pass "
                "guidance_interval=(0.0, end)"
            )

# --- sampling/guidance.py ---
# Guidance: move the model's answer for a class away from its answer for no class.
#
# Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) with scale w replaces the predicted noise by
#
#     eps(x, none) + w (eps(x, class) - eps(x, none))
#
# where "none" is the null class, which training puts in the place of some labels. Variations: a weaker model takes the
# place of the null class (autoguidance, Karras et al. 2024, arXiv 2406.02507); only an interval of the steps is guided
# (Kynkaanniemi et al. 2024, arXiv 2404.07724); a guider of diffusers combines the two answers in another way.

# How many channels of epsilon guidance moves; None is all. The published numbers of DiT guide the first three of four.
GUIDANCE_CHANNELS: dict[str, int | None] = {"first_three": 3, "all": None}

# Those of diffusers' guiders that work on a conditional and an unconditional answer alone.
GUIDERS = (
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "TangentialClassifierFreeGuidance",
)


def guide(cond: Tensor, uncond: Tensor, scale: float, num_channels: int) -> Tensor:
    """Move the first channels away from the unconditional answer (Ho & Salimans 2022, arXiv 2207.12598, eq. 6)."""
    guided = uncond[:, :num_channels] + scale * (cond[:, :num_channels] - uncond[:, :num_channels])
    return torch.cat([guided, cond[:, num_channels:]], dim=1)  # (B, C or 2C, H, W)


def check_guidance_channels(guidance_channels: Any) -> None:
    """Refuse a name that is not in `GUIDANCE_CHANNELS`."""
    if guidance_channels not in GUIDANCE_CHANNELS:
        raise ValueError(f"guidance_channels={guidance_channels!r}: choose from {', '.join(GUIDANCE_CHANNELS)}")


class Guidance:
    """How one call is guided: by what, how far, in which channels, at which steps.

    Args:
        scale: Scale w of classifier-free guidance, at least 0; 1 and below is no guidance. Or a guider of diffusers.
        guidance_channels: Key of `GUIDANCE_CHANNELS`.
        guide_model: Weaker DiT that takes the place of the null class; None for the null class.
        config: Configuration of the model that is guided.

    Raises:
        ValueError: If a value is outside its limits, the model has no null class, or the weaker model does not fit.
    """

    def __init__(
        self, scale: float | BaseGuidance, guidance_channels: str, guide_model: PreTrainedModel | None, config: Any
    ) -> None:
        check_scale(scale)
        check_guidance_channels(guidance_channels)
        self.scale = copy.deepcopy(scale)  # a guider keeps a state: calls in several threads may share it
        self.guide_model = guide_model
        self.num_channels = 0  # that guidance moves
        self.is_guided: list[bool] = []  # for each evaluation of the model; `plan` fills it
        if not isinstance(scale, BaseGuidance) and scale <= 1:
            return
        if guide_model is not None:
            _check_guide_model(guide_model.config, config)
        elif not config.has_null_class:
            raise ValueError(
                f"guidance_scale={scale}: a model with num_classes={config.num_classes} and class_dropout_prob="
                f"{config.class_dropout_prob} has no null class to guide with: pass guidance_scale=1 or a guide_model"
            )
        self.num_channels = min(GUIDANCE_CHANNELS[guidance_channels] or config.in_channels, config.in_channels)

    def plan(
        self,
        timesteps: Tensor,
        interval: tuple[float, float] | None,
        unit: str,
        noise_levels: Callable[[Tensor], np.ndarray],
    ) -> None:
        """Decide which evaluations of the model are guided.

        Args:
            timesteps: Timestep of each evaluation (N,).
            interval: Guide only from the first to the second of these; None guides all.
            unit: "steps": fractions of the steps from 0 (the start) to 1, the end left out. "sigma": noise levels, the
                lower one left out.
            noise_levels: Function from timesteps to noise levels.

        Raises:
            ValueError: If the interval or the unit is outside its limits.
        """
        _check_interval(interval, unit)
        num_steps = len(timesteps)
        self.is_guided = [self.num_channels > 0] * num_steps
        if interval is not None and unit == "steps":
            within = [interval[0] <= step / num_steps < interval[1] for step in range(num_steps)]
        elif interval is not None:
            within = [interval[0] < sigma <= interval[1] for sigma in noise_levels(timesteps)]
        else:
            within = [True] * num_steps
        if isinstance(self.scale, BaseGuidance):
            for step, t in enumerate(timesteps):
                self.scale.set_state(step, num_steps, t)
                within[step] &= self.scale.num_conditions == 2
            self.scale.set_state(0, num_steps, timesteps[0])
            self.scale.prepare_inputs({})  # which forgets the last call
        self.is_guided = [guided and inside for guided, inside in zip(self.is_guided, within, strict=True)]

    def is_paired(self, step: int) -> bool:
        """Whether the model evaluates labels and null class in one batch of twice the rows."""
        return self.is_guided[step] and self.guide_model is None

    def combine(self, step: int, timestep: Tensor, cond: Tensor, other: Tensor) -> Tensor:
        """Combine the answer for the labels with the answer to move away from; both (B, C or 2C, H, W)."""
        if not isinstance(self.scale, BaseGuidance):
            return guide(cond, other, self.scale, self.num_channels)
        self.scale.set_state(step, len(self.is_guided), timestep)
        moved = self.scale.forward(cond[:, : self.num_channels], other[:, : self.num_channels]).pred
        return torch.cat([moved, cond[:, self.num_channels :]], dim=1)


def check_scale(scale: Any) -> None:
    """Refuse what is neither a finite number from 0 on nor one of `GUIDERS`."""
    if isinstance(scale, BaseGuidance):
        if (name := type(scale).__name__) not in GUIDERS:
            raise ValueError(f"guidance_scale={name} hooks parts that no DiT has: choose from {', '.join(GUIDERS)}")
    elif isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)) or not 0 <= scale < math.inf:
        raise ValueError(f"guidance_scale={scale!r}: pass a finite number from 0 on; 1 is no guidance")


def _check_guide_model(weak: Any, config: Any) -> None:
    for name in ("model_type", "in_channels", "sample_size", "num_classes"):
        if getattr(weak, name, None) != getattr(config, name):
            raise ValueError(
                f"guide_model has {name}={getattr(weak, name, None)!r}, the transformer {getattr(config, name)!r}: "
                "they must be equal"
            )


def _check_interval(interval: Any, unit: str) -> None:
    if unit not in ("steps", "sigma"):
        raise ValueError(f"guidance_interval_unit={unit!r}: choose from steps, sigma")
    if interval is None:
        return
    most = 1 if unit == "steps" else math.inf
    ok = isinstance(interval, (tuple, list)) and len(interval) == 2 and all(isinstance(end, Real) for end in interval)
    if not (ok and 0 <= interval[0] < interval[1] <= most):
        raise ValueError(f"guidance_interval={interval!r}: pass (low, high) with 0 <= low < high <= {most}, in {unit}")

# --- vae.py ---
# The facts of a VAE that sampling and training share: by how much it shrinks images, and the scale of its latents.
#
# A diffusion model works on latents of zero mean and unit deviation. With the fields of an `AutoencoderKL`'s
# configuration, z being what the encoder gives:
#
#     latents = (z - shift_factor - latents_mean) * scaling_factor / latents_std
#
# This file travels to the Hub as a part of `pipeline_dit.py`.

# Autoencoders of diffusers that pipelines work with: images of 3 channels to latents (B, C, h, w) and back.
AUTOENCODERS = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "VQModel")
EXPORTED = "ExportedVae"  # one of them as a graph for another runtime


def is_supported_vae(vae: Any) -> bool:
    """Return whether a VAE is one of `AUTOENCODERS`, or of a class derived from one."""
    return any(cls.__name__ in (*AUTOENCODERS, EXPORTED) for cls in type(vae).__mro__)


def vae_shrink_factor(vae_config: Any) -> int:
    """Return the number of pixels along one side of a latent pixel, such as 8.

    Args:
        vae_config: Configuration of one of `AUTOENCODERS`.
    """
    blocks = vae_config.get("encoder_block_out_channels") or vae_config["block_out_channels"]
    return 2 ** (len(blocks) - 1)


def check_resolution(resolution: int, multiple: int) -> None:
    """Refuse images whose sides are no multiple of a number of pixels.

    Args:
        resolution: Side of the images, in pixels.
        multiple: Factor by which the VAE shrinks images.

    Raises:
        ValueError: If the resolution is no multiple, with the nearest ones.
    """
    if resolution % multiple:
        lower = resolution // multiple * multiple
        nearest = f"{lower} or {lower + multiple}" if lower else multiple
        raise ValueError(
            f"resolution={resolution} is no multiple of {multiple}, by which the VAE shrinks images: take {nearest}"
        )


def vae_subfolder(name: str) -> str | None:
    """Return where the VAE lies: in a folder of its own if the name is that of a pipeline's folder."""
    return "vae" if (Path(name) / "model_index.json").is_file() else None


def mean_latents(encoded: Any) -> Tensor:
    """Return the latents (B, C, h, w) of what a VAE's `encode` returns; of a distribution, its mean."""
    if "latent_dist" in encoded:  # AutoencoderKL
        return encoded.latent_dist.mode()
    return encoded.latents if "latents" in encoded else encoded.latent  # AutoencoderTiny and VQModel, or AutoencoderDC


def _std_and_mean(vae_config: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = (
        like.new_tensor(vae_config.get(name) or [default]).view(1, -1, 1, 1)  # (1, C or 1, 1, 1)
        for name, default in (("latents_std", 1.0), ("latents_mean", 0.0))
    )
    return std, mean + (vae_config.get("shift_factor") or 0.0)


def scale_latents(latents: Tensor, vae_config: Any) -> Tensor:
    """Bring latents (B, C, h, w) from the scale of the VAE to the scale of the diffusion model."""
    std, mean = _std_and_mean(vae_config, latents)
    return (latents - mean) * vae_config["scaling_factor"] / std


def unscale_latents(latents: Tensor, vae_config: Any) -> Tensor:
    """Bring latents (B, C, h, w) from the scale of the diffusion model back to the scale of the VAE."""
    std, mean = _std_and_mean(vae_config, latents)
    return latents * (std / vae_config["scaling_factor"]) + mean

# --- sampling/limits.py ---
# Limits of the numbers that a user passes; each refusal names the value, the limit and the remedy.

def check_count(name: str, value: Any, most: float = math.inf) -> None:
    """Refuse a value that is no whole number in 1..most."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name}={value!r}: pass a whole number of at least 1{limit}")


def falling_numbers(name: str, values: Any, convert: Callable[[Any], Any], least: float, most: float) -> list:
    """Return values as a list of numbers, each smaller than the one before; refuse others.

    Args:
        name: Argument that the values were passed as.
        values: Sequence, array or tensor.
        convert: Function that makes a number of a value, or raises TypeError.
        least: Smallest number allowed.
        most: Largest number allowed; infinity itself is not.

    Raises:
        ValueError: If there is no value, or one is no number, outside the limits or not smaller than the one before.
    """
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        falling = [convert(value) for value in values]
    except TypeError as error:
        raise ValueError(f"{name}={values!r}: pass a list of numbers") from error
    inside = all(least <= value <= most and value < math.inf for value in falling)
    if not falling or not inside or any(a <= b for a, b in zip(falling, falling[1:], strict=False)):
        raise ValueError(f"{name}={values!r}: pass falling numbers in {least:g}..{most:g}, at least one")
    return falling

# --- sampling/turns.py ---
# Taking turns: a lock for each module that changes while it is used, for pipelines that sample in several threads.

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def lock_of(module: nn.Module) -> threading.RLock:
    """Return the lock of a module, the same one for each pipeline that shares the module."""
    return _LOCKS.setdefault(module, threading.RLock())

# --- class_names.py ---
# How names of classes are compared: the one rule of data sets, trainings, adapters and pipelines.
#
# A name stands for the class whose whole label it is. Failing that, it may be a synonym: ImageNet's labels list several
# names between commas, and no other labels do. Example: with the labels 0 "tench, Tinca tinca", 1 "green snake, grass
# snake", 2 "garter snake, grass snake" and 3 "beach, summer", "tench" is class 0, "green snake" is class 1, "grass snake"
# is no name, as two classes have it, and class 3 has the name "beach, summer" alone.
#
# Names are compared in Unicode's form NFC, in which "é" is one character; names of files on macOS have two.

def clean_name(name: str) -> str:
    """Return a name in the form in which it is stored: NFC, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def normal_name(name: str) -> str:
    """Return a name in the form in which it is compared: NFC, with one space after each comma and none before it."""
    return re.sub(r"\s*,\s*", ", ", unicodedata.normalize("NFC", name))


def labels_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each whole label to the ids of the classes that have it."""
    ids: dict[str, list[int]] = {}
    for class_id, label in id2label.items():
        ids.setdefault(normal_name(label.strip()), []).append(class_id)
    return ids


def synonyms_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name that a label lists to the ids of the classes that have it, in alphabetical order.

    A label of ImageNet lists its parts between commas, and another label lists itself alone.
    """
    ids: dict[str, list[int]] = {}
    for class_id, stored in id2label.items():
        label = normal_name(stored.strip())
        listed = label.split(", ") if lists_synonyms(label) else [label]
        for name in dict.fromkeys(listed):
            ids.setdefault(name, []).append(class_id)
    return dict(sorted(ids.items()))


def names_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name to the ids of the classes that it stands for: whole labels first, then synonyms.

    Args:
        id2label: Labels by class id.
    """
    return synonyms_to_ids(id2label) | labels_to_ids(id2label)

# --- images.py ---
# One picture, one set of pixels: from encoded bytes, a file or an opened image to an upright RGB image.
#
# Training, evaluation and the image-to-image pipelines all read their images here:
#
# - of an animation, the first picture counts;
# - the EXIF orientation is applied;
# - transparency is composited on white, whether it is an alpha channel, a palette entry or a transparent colour;
# - grey of 16 bits or in floating point is scaled to 8 bits, of colour in 16 bits Pillow reads the high byte (at most one
#   level from the rounded value), and CMYK is converted;
# - colour profiles are not applied.
#
# This file travels to the Hub as a part of `pipeline_dit.py`.

# Format of Pillow -> suffixes of its files. None of these formats can run a program.
FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
}
HEIC_PLUGIN, HEIC_SUFFIXES = "pillow_heif", (".heic", ".heif", ".hif")
HEIC_REMEDY = f"{how_to_install(PACKAGES[HEIC_PLUGIN])}, or convert them to JPEG"
MAX_PIXELS = 89_478_485  # Pillow warns beyond it: 256 MiB as RGB
MIN_SIDE = 2  # pixels
MAX_ASPECT = 100  # long side / short side, because the short side is resized to the training resolution
DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}  # grey of more than 8 bits
# What Pillow's decoders have been seen to raise on damaged bytes.
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
ORIENTATION = 0x0112  # tag of EXIF
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # tag of TIFF, and its value for a negative
BITS, COMPRESSION, CHANNELS, PLANES = 258, 259, 277, 284  # tags of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_NOTES = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # texts and profiles, which change no pixel here


class BadImage(ValueError):
    """Data that cannot be made an image to train on or to measure; the message says why."""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats of Pillow that are read; HEIC is one of them if pillow-heif is installed."""
    if not is_installed(HEIC_PLUGIN):
        return tuple(FORMATS)
    importlib.import_module(HEIC_PLUGIN).register_heif_opener()
    return (*FORMATS, "HEIF")


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that are taken for images, in lower case."""
    heic = HEIC_SUFFIXES if "HEIF" in readable_formats() else ()
    return frozenset((*(suffix for suffixes in FORMATS.values() for suffix in suffixes), *heic))


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file to an upright RGB image.

    Raises:
        BadImage: As `decode_image`; the message names the file.
        OSError: If the file cannot be read.
    """
    try:
        return decode_image(Path(path).read_bytes())
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to an upright RGB image.

    Raises:
        BadImage: If the bytes are damaged, of no known format, or as in `open_checked` and `to_rgb`.
    """
    try:
        return _decode(data)
    except BadImage:
        # Pillow refuses a PNG whose texts or colour profile take much memory; the picture is whole without them.
        bare = _without_notes(data)
        if len(bare) == len(data):
            raise
        return _decode(bare)


def open_checked(data: bytes) -> Image.Image:
    """Open an image, and judge by its header whether decoding it would take too much memory.

    Raises:
        BadImage: If the data are no image of a known format, or its sides are outside the limits.
    """
    try:
        file = Image.open(io.BytesIO(data), formats=readable_formats())
    except DECODER_ERRORS as error:
        raise BadImage(_reason(error, data)) from error
    short, long = sorted(file.size)
    if short * long > MAX_PIXELS or short < MIN_SIDE or long > MAX_ASPECT * short:
        raise BadImage(
            f"{file.width}x{file.height} pixels: at most {MAX_PIXELS} are decoded, of at least {MIN_SIDE} a side, the "
            f"long one at most {MAX_ASPECT} times the short one"
        )
    return file


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an opened image upright and convert it to RGB.

    Args:
        image: Image of any mode, decoded or not yet.

    Raises:
        BadImage: If the image cannot be decoded, or if its grey values have no known white. The message names the file
            that the image was opened from, if there is one.
    """
    try:
        return _to_rgb(image)
    except DECODER_ERRORS as error:
        reason = str(error) if isinstance(error, BadImage) else _in_one_line(error)
        name = getattr(image, "filename", "")
        raise BadImage(f"{name}: {reason}" if name else reason) from error


def _decode(data: bytes) -> Image.Image:
    with open_checked(data) as file:
        try:
            return _to_rgb(file)
        except BadImage:
            raise
        except DECODER_ERRORS as error:
            raise BadImage(_reason(error, data)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    _refuse_planes(image)
    levels = _levels_of_a_sample(image)  # before the image is decoded: afterwards Pillow has forgotten it
    image.load()  # before the orientation: Pillow reports a damaged stream only once, and a PNG's EXIF reads it
    turn = TURNS.get(read_orientation(image))
    transparent = image.info.get("transparency")
    is_negative = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    # Pillow takes every CMYK file in JPEG for one of Adobe's, whose inks are stored inverted.
    is_plain_cmyk = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in DEEP_MODES:
        image = _to_8_bit(image, is_negative, transparent)
    elif isinstance(transparent, int) and image.mode == "L" and levels > 1:
        image = _with_transparent(image, transparent * levels)
    elif isinstance(transparent, tuple) and max(transparent) > 255:  # a colour of 16 bits in an image read as 8 bits
        image = _with_transparent(image, tuple(value >> 8 for value in transparent))
    if is_plain_cmyk:
        image = ImageChops.invert(image)
    if image.mode == "La":  # Pillow has no way from premultiplied grey to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    rgb = image.convert("RGB")
    rgb.info = {}  # the orientation is applied: whoever reads the image again must not find it
    return rgb


def _refuse_planes(image: Image.Image) -> None:
    """Refuse a TIFF that stores its channels one after another, in the forms that Pillow 12 reads wrongly."""
    tags = getattr(image, "tag_v2", {})
    bits, compression = tags.get(BITS, (1,)), tags.get(COMPRESSION, 1)
    is_misread = tags.get(CHANNELS, 1) == 2 or (max(bits) > 8 and compression == 1)
    if tags.get(PLANES, 1) == 2 and tags.get(CHANNELS, 1) > 1 and is_misread:
        raise BadImage(
            "this TIFF stores its channels one after another, which is misread: save it with interleaved channels, or "
            "convert it to PNG"
        )


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, which is 1 (upright) if there is none or if the EXIF block is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, AttributeError, KeyError, OSError, struct.error):
        return 1


def _levels_of_a_sample(image: Image.Image) -> int:
    """Return the grey levels of 8 bits per level of the file: 85 for grey of 2 bits, 17 for 4 bits, 1 for 8 bits."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    rawmode = arguments if isinstance(arguments, str) else next(iter(arguments or ("",)), "")
    return {"L;2": 85, "L;4": 17}.get(rawmode, 1)


def _with_transparent(image: Image.Image, value: int | tuple[int, ...]) -> Image.Image:
    image = image.copy()
    image.info["transparency"] = value
    return image


def _to_8_bit(image: Image.Image, is_negative: bool, transparent: Any) -> Image.Image:
    """Scale grey of 16 bits, or of floating-point numbers between 0 and 1, to 8 bits; Pillow would clip it at 255.

    Args:
        image: Image of one of `DEEP_MODES`.
        is_negative: Whether 0 is white.
        transparent: Value that is transparent; None for none.
    """
    values = np.asarray(image, dtype=np.float64)  # (H, W)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= white):  # also if a value is NaN
        raise BadImage(f"grey values of mode {image.mode} outside 0..{white:g} have no known white")
    shown = white - values if is_negative else values
    grey = np.rint(shown * (255 / white)).astype(np.uint8)
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], axis=-1), "LA")


def _without_notes(data: bytes) -> bytes:
    """Return the bytes of a PNG without its texts and its colour profile; other bytes as they are."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])  # length, kind, content, checksum
        if data[start + 4 : start + 8] not in PNG_NOTES:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _in_one_line(error: Exception) -> str:
    return f"no whole image: {type(error).__name__}: {' '.join(str(error).split())}"


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "no bytes"
    if not isinstance(error, UnidentifiedImageError):
        return f"{len(data)} bytes that are {_in_one_line(error)}"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return f"HEIC cannot be read: {HEIC_REMEDY}"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL cannot be read: convert it to PNG or JPEG"
    return f"{len(data)} bytes of no known image format"

# --- weight_files.py ---
# Files of weights in a folder: saved as a whole, and never in two forms of which one is outdated.
#
# Weights have one of two forms: a single file, `model.safetensors`, or shards, `model-00001-of-00002.safetensors` and so
# on, listed in `model.safetensors.index.json`. If a folder holds both, transformers reads the single file and diffusers
# the shards, whichever is newer. A variant is a name between the two: `model.fp16.safetensors`. diffusers' names begin
# with `diffusion_pytorch_model`, older ones of transformers with `pytorch_model`.

# Modules that torch.compile, data parallelism, activation checkpointing and FSDP put around another one.
WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

STEM = r"(?P<stem>model|pytorch_model|diffusion_pytorch_model)"
VARIANT = r"(?:\.(?P<variant>\w+))?"
FORMS = {
    "index": re.compile(rf"{STEM}\.(?P<format>safetensors|bin)\.index{VARIANT}\.json"),
    "shard": re.compile(rf"{STEM}{VARIANT}-\d{{5}}-of-\d{{5}}\.(?P<format>safetensors|bin)"),
    "single": re.compile(rf"{STEM}{VARIANT}\.(?P<format>safetensors|bin)"),
}


class WeightFile(NamedTuple):
    """What the name of a file of weights says."""

    library: str  # "transformers" or "diffusers"
    variant: str | None
    format: str  # "safetensors" or "bin"
    form: str  # a key of `FORMS`


def strip_wrappers(key: str) -> str:
    """Take the names of wrappers out of a weight's key: "blocks.0._orig_mod.attn.qkv.bias" has one in the middle."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def refuse_adapters(model: Any, what: str) -> None:
    """Refuse a model with LoRA adapters, in use or disabled, where its weights alone are wanted.

    Args:
        model: Model, possibly with layers of PEFT.
        what: What is about to happen, for the message: "saving".

    Raises:
        ValueError: If there is an adapter.
    """
    if names := getattr(model, "peft_config", None):
        raise ValueError(
            f"an adapter is loaded ({', '.join(names)}): call fuse_lora() to add it to the weights, or "
            f"unload_lora_weights() to leave it out, before {what}"
        )


def read_name(file: PurePath) -> WeightFile | None:
    """Read the name of a file, or return None if it is no file of weights."""
    for form, pattern in FORMS.items():
        match = pattern.fullmatch(file.name)
        if match and (match["stem"], match["format"]) != ("model", "bin"):  # a name that neither library writes
            library = "diffusers" if match["stem"].startswith("diffusion") else "transformers"
            return WeightFile(library, match["variant"], match["format"], form)
    return None


def superseded(present: Iterable[PurePath], written: Iterable[PurePath]) -> list[PurePath]:
    """Find the files of weights that written ones make outdated: those of the same folder and variant.

    Example: shards and an index were written to a folder that holds `model.safetensors`, `model.fp16.safetensors` and
    `config.json`; the first is outdated.

    Args:
        present: Files of a folder or of a repository, by their paths in it.
        written: Files that were just written, by the same kind of paths.
    """
    new = set(written)
    kinds = {(file.parent, name.variant) for file in new if (name := read_name(file))}
    return sorted(
        file for file in set(present) - new if (name := read_name(file)) and (file.parent, name.variant) in kinds
    )


def refuse_two_forms(folder: Path, variant: str | None = None) -> None:
    """Refuse a folder that holds both a single file and an index of shards, as one of them is outdated.

    Args:
        folder: Folder of a model of transformers or diffusers.
        variant: Variant that is to be loaded.

    Raises:
        ValueError: If there are two forms, with the files to choose from.
    """
    refuse_two_forms_among([file.relative_to(folder) for file in folder.iterdir()], str(folder), variant)


def refuse_two_forms_among(files: Iterable[PurePath], source: str, variant: str | None = None) -> None:
    """Refuse files of which a folder has both a single file of weights and an index of shards.

    Args:
        files: Files of a folder or of a repository, by their paths in it.
        source: Folder or repository, for the message.
        variant: Variant that is to be loaded.

    Raises:
        ValueError: As in `refuse_two_forms`.
    """
    found = {(file.parent, name): file for file in files if (name := read_name(file)) and name.variant == variant}
    for (folder, name), file in found.items():
        index = found.get((folder, name._replace(form="index")))
        if name.form == "single" and index:
            raise ValueError(
                f"{source} holds the weights twice, as {file} and as the shards of {index}, and one of them is "
                f"outdated: delete {file}, or delete {index} with its shards"
            )


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; if the block ends without an error, move its files to their place.

    A file of weights in `folder` that the new ones supersede is removed once all new files are in place: shards after
    a single file was written, for example. If the block fails, `folder` stays as it was.

    Args:
        folder: Folder of a model, or of a pipeline with the folders of its parts. It is created if it does not exist
            and something was written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())  # on the same file system
    with TemporaryDirectory(prefix=".saving-", dir=nearest) as temporary:
        yield Path(temporary)
        written = [file.relative_to(temporary) for file in sorted(Path(temporary).rglob("*")) if file.is_file()]
        indexes = [file for file in written if (name := read_name(file)) and name.form == "index"]
        for index in indexes:
            (folder / index).unlink(missing_ok=True)  # the old index must never list new shards
        for file in [*(file for file in written if file not in indexes), *indexes]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            flush(Path(temporary, file))
            rename(Path(temporary, file), folder / file)
    folders = {folder / file.parent for file in written}
    present = [file.relative_to(folder) for parent in folders for file in parent.iterdir()]
    for outdated in superseded(present, written):
        (folder / outdated).unlink()

# --- lora_pipeline.py ---
# What a pipeline does with LoRA adapters, named as in diffusers: load several by name, scale, fuse and unload them.
#
# This file travels to the Hub as a part of `pipeline_dit.py`. The work is done by `dit_hf.finetuning.adapters`.

class DiTLoraLoaderMixin:
    """LoRA adapters of `self.transformer`. Each has its own classes; the pipeline has those of the first in use."""

    transformer: Any
    config: Any
    register_to_config: Any

    def load_lora_weights(
        self,
        source: str | Path,
        adapter_name: str | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Load a LoRA adapter and use it alone, with the classes it was trained for.

        Args:
            source: Folder or id on the Hub, as a training with `lora_rank` writes it.
            adapter_name: Name for `set_adapters`. Default: "default_0" for the first, "default_1" for the next.
            revision: Branch, tag or commit on the Hub.
            token: Token for the Hub; None for the one of `hf auth login` or HF_TOKEN.
            cache_dir: Folder of downloaded files.
            local_files_only: Whether to take files from the cache only.

        Raises:
            ImportError: If this package or PEFT is not installed.
            ValueError: If the name is taken, or if the source is no adapter, or one of another model.
        """
        finetuning = import_for("load_lora_weights", "dit_hf.finetuning")
        is_first = not getattr(self.transformer, "peft_config", None)
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        id2label = finetuning.load_lora(self.transformer, source, adapter_name, **options)
        if is_first:
            self.transformer._id2label_before_lora = self.config.id2label  # there, as pipelines may share it
        self.register_to_config(id2label=id2label)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Use loaded adapters together; the first one gives the classes.

        Args:
            adapter_names: Name or names, such as `["my-dog", "watercolour"]`.
            adapter_weights: Scale of each, 1 as it was trained; one number for all.

        Raises:
            ImportError: If this package is not installed.
            ValueError: If an adapter is unknown or named twice, or a scale is missing or not finite.
        """
        finetuning = import_for("set_adapters", "dit_hf.finetuning")
        self.register_to_config(id2label=finetuning.set_adapters(self.transformer, adapter_names, adapter_weights))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the adapters in use, the one that gives the classes first."""
        return import_for("get_active_adapters", "dit_hf.finetuning").active_adapters(self.transformer)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of all loaded adapters, by the component that they are in."""
        return {"transformer": import_for("get_list_adapters", "dit_hf.finetuning").loaded_adapters(self.transformer)}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove loaded adapters; without any left in use, the pipeline has its own classes again.

        Raises:
            ValueError: If an adapter is unknown.
        """
        finetuning = import_for("delete_adapters", "dit_hf.finetuning")
        id2label = finetuning.delete_adapters(self.transformer, adapter_names)
        is_any_in_use = bool(finetuning.active_adapters(self.transformer))
        self.register_to_config(id2label=id2label if is_any_in_use else self._own_id2label())

    def disable_lora(self) -> None:
        """Draw with the model itself and its own classes, and keep the adapters loaded.

        Raises:
            ValueError: If no adapter is loaded.
        """
        import_for("disable_lora", "dit_hf.finetuning").disable_adapters(self.transformer)
        self.register_to_config(id2label=self._own_id2label())

    def enable_lora(self) -> None:
        """Use the adapters again that were in use before `disable_lora`.

        Raises:
            ValueError: If no adapter is loaded.
        """
        id2label = import_for("enable_lora", "dit_hf.finetuning").enable_adapters(self.transformer)
        self.register_to_config(id2label=id2label)

    def fuse_lora(self, lora_scale: float = 1.0, adapter_names: str | Sequence[str] | None = None) -> None:
        """Add adapters to the weights; after that the pipeline saves as any other.

        Args:
            lora_scale: Factor of the adapters' scales; 1 as they are in use.
            adapter_names: Adapters to add; by default those in use.

        Raises:
            ImportError: If this file runs without the package.
            ValueError: If no adapter is loaded, one is unknown, or all are disabled and none is named.
        """
        merge_lora = import_for("fuse_lora", "dit_hf.finetuning").merge_lora
        id2label = merge_lora(self.transformer, lora_scale, adapter_names)
        if adapter_names is not None:
            self.register_to_config(id2label=id2label)

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again, up to rounding, and use them as loaded ones.

        Raises:
            ValueError: If no adapter is fused, or another one was loaded since.
        """
        id2label = import_for("unfuse_lora", "dit_hf.finetuning").unmerge_lora(self.transformer)
        self.register_to_config(id2label=id2label)

    def unload_lora_weights(self) -> None:
        """Take out all adapters that are not fused, and return to the classes before them."""
        if getattr(self.transformer, "peft_config", None):
            import_for("unload_lora_weights", "dit_hf.finetuning").remove_lora(self.transformer)
            self.register_to_config(id2label=self._own_id2label())

    def _own_id2label(self) -> dict[int, str] | None:
        """Return the names of the model's own classes, which the model keeps, as pipelines may share it."""
        return getattr(self.transformer, "_id2label_before_lora", None)

# --- sampling/schedulers.py ---
# Schedulers: which of diffusers' schedulers sample a DiT, what each of them needs, and the timesteps of a call.
#
# A scheduler's class says less than sampling has to know: whether it can use a learned variance, whether its `step`
# follows its own timesteps, which settings make it fail. `SCHEDULERS` and the checks below hold these facts; each of them
# is tested against an exact denoiser, whose samples are known in closed form (tests/sampling/test_schedulers.py).

class SchedulerTraits(NamedTuple):
    """What sampling has to know of a scheduler beyond its interface."""

    num_steps: int  # usual number of steps
    learned_variance: Literal["used", "ignored", "refused"]  # with variance_type "learned" or "learned_range"
    steps_by_ratio: bool = False  # its `step` goes from t to t - T // num_steps, whatever its timesteps are
    flow: bool = False  # flow matching: no betas, and no field prediction_type
    starts_midway: bool = True  # can start from an image with some noise on it
    divides_by_step: bool = False  # divides by the difference of two noise levels, which must not be zero
    is_rehearsed: bool = True  # has settings that fail only after some steps


SCHEDULERS: dict[str, SchedulerTraits] = {
    "DDPMScheduler": SchedulerTraits(250, "used", is_rehearsed=False),
    "DDIMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True),
    # it counts its calls, and so begins at the first step only
    "PNDMScheduler": SchedulerTraits(50, "ignored", steps_by_ratio=True, starts_midway=False),
    "EulerDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "EulerAncestralDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "HeunDiscreteScheduler": SchedulerTraits(50, "ignored"),
    "DPMSolverMultistepScheduler": SchedulerTraits(25, "refused", divides_by_step=True),
    "DPMSolverSinglestepScheduler": SchedulerTraits(25, "refused", divides_by_step=True),
    "UniPCMultistepScheduler": SchedulerTraits(25, "ignored", divides_by_step=True),
    "DEISMultistepScheduler": SchedulerTraits(25, "ignored", divides_by_step=True),
    "SASolverScheduler": SchedulerTraits(25, "refused", divides_by_step=True),
    "FlowMatchEulerDiscreteScheduler": SchedulerTraits(50, "ignored", flow=True),
    "FlowMatchHeunDiscreteScheduler": SchedulerTraits(50, "ignored", flow=True),
}


# What a model trained by flow matching may predict, on the path x_t = (1 - sigma) x_0 + sigma noise. Its schedulers
# read the first; `velocity` turns the second into it.
FLOW_PREDICTIONS = ("flow_prediction", "flow_sample")  # noise - x_0; x_0


def traits_of(scheduler: SchedulerMixin) -> SchedulerTraits:
    """Return the row of `SCHEDULERS` for a scheduler; a subclass samples as its parent does.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(scheduler, DDIMInverseScheduler):  # used by DiTImg2ImgPipeline.invert only
        return SchedulerTraits(50, "ignored", steps_by_ratio=True, starts_midway=False)
    for cls in type(scheduler).__mro__:
        if cls.__name__ in SCHEDULERS:
            return SCHEDULERS[cls.__name__]
    raise ValueError(f"{type(scheduler).__name__} is not supported: choose from {', '.join(SCHEDULERS)}")


def check_scheduler(scheduler: SchedulerMixin, prediction_type: str | None, learn_sigma: bool) -> str:
    """Refuse a scheduler that cannot sample a model, and return what the model predicts.

    Args:
        scheduler: Scheduler with its settings.
        prediction_type: "epsilon", "sample", "v_prediction", "flow_prediction" or "flow_sample"; None for what the
            scheduler reads.
        learn_sigma: Whether the model predicts a variance.

    Raises:
        ValueError: If the scheduler is unknown, reads another prediction, needs a variance that is not there, or has
            settings with which it fails.
    """
    predicted = _check_prediction(scheduler, prediction_type)
    takes_variance(scheduler, learn_sigma)
    _check_signal(scheduler, predicted)
    _check_solver(scheduler)
    return predicted


def _check_prediction(scheduler: SchedulerMixin, prediction_type: str | None) -> str:
    """Return what the model predicts, and refuse a scheduler that would read its answer as something else."""
    name, config, flow = type(scheduler).__name__, scheduler.config, traits_of(scheduler).flow
    expected = "flow_prediction" if flow else config.prediction_type
    if flow and prediction_type is None:
        raise ValueError(
            f"{name} needs a model trained by flow matching: if it was, pass prediction_type='{expected}', or "
            "'flow_sample' if it predicts x_0"
        )
    read = FLOW_PREDICTIONS if expected == "flow_prediction" else (expected,)
    if prediction_type not in (None, *read):
        fix = "a scheduler with betas, such as DDIMScheduler" if flow else f"prediction_type={prediction_type!r} in it"
        fix = "FlowMatchEulerDiscreteScheduler" if prediction_type in FLOW_PREDICTIONS else fix
        raise ValueError(f"{name} samples {expected!r}, the model was trained with {prediction_type!r}: use {fix}")
    if expected == "flow_prediction" and not flow and not config.get("use_flow_sigmas"):
        raise ValueError(f"{name} has prediction_type='flow_prediction': it needs use_flow_sigmas=True beside it")
    return prediction_type or expected


def takes_variance(scheduler: SchedulerMixin, learn_sigma: bool) -> bool:
    """Return whether the scheduler's `step` takes 2C channels, epsilon and the learned variance.

    Raises:
        ValueError: If the scheduler wants a variance that the model does not predict, or fails on 2C channels.
    """
    name, treatment = type(scheduler).__name__, traits_of(scheduler).learned_variance
    variance_type = scheduler.config.get("variance_type")
    if variance_type not in ("learned", "learned_range") or treatment == "ignored":
        return False
    if treatment == "refused" or not learn_sigma:
        why = "it keeps three channels only" if treatment == "refused" else "the model has learn_sigma=False"
        fix = None if treatment == "refused" else "fixed_small"
        raise ValueError(
            f"{name} cannot use variance_type={variance_type!r}, {why}: build it with "
            f"{name}.from_config(config, variance_type={fix!r})"
        )
    return True


def warn_of_clipping(scheduler: SchedulerMixin) -> None:
    """Warn of a scheduler that clips its estimate of x_0, as is made for pixels: latents are mostly outside."""
    if scheduler.config.get("clip_sample"):
        name, most = type(scheduler).__name__, scheduler.config.clip_sample_range
        message = f"{name} has clip_sample=True and clips latents at +-{most:g}, which may leave noise for an image: "
        logging.get_logger(__name__).warning(f"{message}build it with {name}.from_config(config, clip_sample=False).")


def _check_steps(scheduler: SchedulerMixin, num_steps: int) -> None:
    """Refuse a number of steps that the scheduler cannot take, or whose timesteps its own `step` does not follow."""
    name, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, PNDMScheduler) and not config.skip_prk_steps and num_steps < 4:
        why, fix = "begins with three steps of another kind", "num_inference_steps=4 or more, or skip_prk_steps=True"
        raise ValueError(f"{name} with num_inference_steps={num_steps} {why}: pass {fix}")
    spacing = config.get("timestep_spacing")
    if not traits_of(scheduler).steps_by_ratio or spacing == "leading":
        return
    if spacing == "linspace" or config.num_train_timesteps % num_steps:
        unclipped = ", clip_sample=False" if "clip_sample" in config else ""
        raise ValueError(
            f"{name} always steps by {config.num_train_timesteps} // {num_steps}, not as timestep_spacing="
            f"{spacing!r} says: build it with {name}.from_config(config, timestep_spacing='leading'{unclipped})"
        )


def _check_solver(scheduler: SchedulerMixin) -> None:
    """Refuse settings of a scheduler with which it fails on the exact denoiser of a Gaussian."""
    name, config = type(scheduler).__name__, scheduler.config
    if isinstance(scheduler, DDPMScheduler) and config.variance_type in ("learned", "fixed_large_log"):
        why = "the model learns a range" if config.variance_type == "learned" else "it takes the root of a logarithm"
        fix = "learned_range" if config.variance_type == "learned" else "fixed_large"
        raise ValueError(f"{name} fails with variance_type={config.variance_type!r}, {why}: use {fix!r}")
    if isinstance(scheduler, DEISMultistepScheduler) and config.solver_order > 2:
        why, fix = "loses its digits, and errs the more the more steps it takes", "solver_order=2"
        raise ValueError(f"{name} with solver_order={config.solver_order} {why}: use {fix}")
    if isinstance(scheduler, UniPCMultistepScheduler) and config.solver_type == "bh1":
        if config.final_sigmas_type == "zero":
            fix = "solver_type='bh2' or final_sigmas_type='sigma_min'"
            raise ValueError(f"{name} with solver_type='bh1' multiplies infinity by zero in its last step: use {fix}")


def _check_signal(scheduler: SchedulerMixin, predicted: str) -> None:
    """Refuse betas that leave nothing of x_0 at the last timestep, if the model predicts epsilon."""
    is_rescaled = scheduler.config.get("rescale_betas_zero_snr")
    if predicted == "epsilon" and (is_rescaled or scheduler.alphas_cumprod[-1] == 0):
        betas = "rescale_betas_zero_snr=True" if is_rescaled else "trained_betas"
        raise ValueError(
            f"{type(scheduler).__name__} has betas that leave nothing of x_0 at the last timestep ({betas}), where "
            "epsilon does not say what x_0 is: use the betas that the model was trained with, "
            "rescale_betas_zero_snr=False, or a model that predicts 'v_prediction' or 'sample'"
        )


def set_timesteps(scheduler: SchedulerMixin, num_steps: int | None, timesteps: Any, sigmas: Any) -> Tensor:
    """Set a scheduler to the steps of a call, and return the timestep of each evaluation of the model (N,).

    The timesteps stay in host memory: schedulers branch on them and index with them, for which a loop on a GPU would
    stop and wait. At most one of the three arguments is given; none of them is the scheduler's usual number of steps.

    Args:
        scheduler: Scheduler, whose state changes.
        num_steps: Number of steps in 1..T.
        timesteps: Falling whole numbers in 0..T - 1, if the scheduler takes them.
        sigmas: Falling noise levels in the scheduler's own terms, if it takes them.

    Raises:
        ValueError: If a value is outside its limits, or the scheduler does not take it.
    """
    name, num_train = type(scheduler).__name__, scheduler.config.num_train_timesteps
    own = {"num_inference_steps": num_steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {argument: value for argument, value in own.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each say which steps to take: pass one of them")
    for argument in given.keys() - inspect.signature(scheduler.set_timesteps).parameters.keys():
        raise ValueError(f"{name} takes no {argument}: pass num_inference_steps, or another scheduler")
    if timesteps is not None:
        given["timesteps"] = falling_numbers("timesteps", timesteps, operator.index, 0, num_train - 1)
    elif sigmas is not None:
        given["sigmas"] = falling_numbers("sigmas", sigmas, float, 0.0, math.inf)
    else:
        num_steps = min(traits_of(scheduler).num_steps, num_train) if num_steps is None else num_steps
        check_count("num_inference_steps", num_steps, num_train)
        _check_steps(scheduler, num_steps)
        every = num_steps == num_train and traits_of(scheduler).divides_by_step
        given = _every_timestep(scheduler) if every else {"num_inference_steps": num_steps}
    scheduler.set_timesteps(**given, device="cpu")
    _check_trained(scheduler)
    if hasattr(scheduler, "set_begin_index"):  # otherwise it would look for the first timestep, which may occur twice
        scheduler.set_begin_index(0)
    return scheduler.timesteps


def _check_trained(scheduler: SchedulerMixin) -> None:
    """Refuse timesteps beyond those of the training."""
    name, num_train = type(scheduler).__name__, scheduler.config.num_train_timesteps
    first = float(scheduler.timesteps.max())
    if first > num_train - 1 and not (traits_of(scheduler).flow or scheduler.config.get("use_flow_sigmas")):
        raise ValueError(
            f"{name} begins at timestep {first:g}, beyond the trained 0..{num_train - 1}: pass fewer steps, or build "
            f"it with {name}.from_config(config, steps_offset=0)"
        )


def _every_timestep(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Return the arguments of `set_timesteps` for every timestep once; a spacing of its own would repeat some."""
    num_train = scheduler.config.num_train_timesteps
    if "timestep_spacing" in scheduler.config:
        scheduler.register_to_config(timestep_spacing="trailing")
    elif not any(scheduler.config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta", "flow")):
        return {"timesteps": list(range(num_train))[::-1]}
    return {"num_inference_steps": num_train}


def start_midway(scheduler: SchedulerMixin, strength: float) -> Tensor:
    """Let a scheduler whose timesteps are set begin at a part of them, and return those that are left (N',).

    Args:
        scheduler: Scheduler, whose state changes.
        strength: Share of the steps to take, in (0, 1].

    Raises:
        ValueError: If the scheduler cannot do so, or the strength leaves no step.
    """
    name = type(scheduler).__name__
    if not traits_of(scheduler).starts_midway:
        raise ValueError(f"{name} cannot start from an image: use DDIMScheduler or DPMSolverMultistepScheduler")
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise ValueError(f"strength={strength!r}: pass a number in (0, 1], 1 for all of the noise")
    total = math.ceil(len(scheduler.timesteps) / scheduler.order)
    if round(total * strength) == 0:
        raise ValueError(f"strength={strength} of {total} steps is none: pass more of either")
    begin = (total - round(total * strength)) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:]


def velocity(scheduler: SchedulerMixin, step: int, x_t: Tensor, x_0: Tensor) -> Tensor:
    """Return the velocity noise - x_0 = (x_t - x_0) / sigma that a scheduler of flow matching reads, (B, C, H, W).

    Args:
        scheduler: Scheduler whose timesteps are set, and whose `sigmas` hold the noise level of each evaluation.
        step: Number of the evaluation in this call.
        x_t: Latents; (B, C, H, W).
        x_0: What the model predicts of x_0; (B, C, H, W).
    """
    sigma = float(scheduler.sigmas[(scheduler.begin_index or 0) + step])
    return (x_t - x_0) / max(sigma, 1e-6)  # without noise x_t is x_0, and the scheduler takes no step


def step_arguments(scheduler: SchedulerMixin, generator: Any, eta: float) -> dict[str, Any]:
    """Return the arguments beyond the usual three that a scheduler's `step` takes in a call.

    Raises:
        ValueError: If eta is outside [0, 1], or the scheduler has none.
    """
    parameters = inspect.signature(scheduler.step).parameters
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]: 0 is deterministic, 1 draws as much noise as DDPM")
    if eta and "eta" not in parameters:
        raise ValueError(f"eta={eta}: {type(scheduler).__name__} has none, leave it at 0 or use DDIMScheduler")
    return {name: value for name, value in {"generator": generator, "eta": eta}.items() if name in parameters}


def noise_levels(scheduler: SchedulerMixin, timesteps: Tensor) -> np.ndarray:
    """Return b / a of x_t = a x_0 + b noise at each timestep (N,); in flow matching b, where a = 1 - b."""
    if traits_of(scheduler).flow or scheduler.config.prediction_type == "flow_prediction":
        return timesteps.numpy() / scheduler.config.num_train_timesteps
    log_alpha_bar = scheduler.alphas_cumprod.double().log().cpu().numpy()
    return np.sqrt(np.expm1(-np.interp(timesteps.numpy(), np.arange(len(log_alpha_bar)), log_alpha_bar)))


def add_noise(scheduler: SchedulerMixin, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Bring clean latents (B or 1, C, H, W) to the noise level of one timestep (1,), in the scheduler's scaling."""
    latents = latents.expand_as(noise)  # (B, C, H, W)
    if traits_of(scheduler).flow:
        return scheduler.scale_noise(latents, timestep, noise)
    return scheduler.add_noise(latents, noise, timestep.expand(len(latents)))

# --- sampling/latents.py ---
# Latents: their size, the noise that a call begins with, and the VAE between latents and images.
#
# Legend: B images, C latent channels, H and W latent height and width; height and width in pixels.

Generators = torch.Generator | list[torch.Generator] | None


def on_its_device(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model after moving it to its device, if it is offloaded.

    Accelerate's hooks do this only if `forward` is called, and sampling calls other methods as well.
    """
    if hasattr(model, "_hf_hook"):
        model._hf_hook.pre_forward(model)
    return model


def latent_size(config: Any, vae_scale_factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Return height and width of the latents for images of a size in pixels.

    Args:
        config: Configuration of the transformer.
        vae_scale_factor: Number of pixels along one side of a latent pixel.
        height: Height of the images in pixels; None for the trained one.
        width: Width of the images in pixels; None for the trained one.

    Raises:
        ValueError: If a side is no multiple of the pixels of a patch.
    """
    unit = vae_scale_factor * config.patch_size
    size = []
    for name, pixels, trained in zip(("height", "width"), (height, width), config.sample_height_width, strict=True):
        if pixels is not None and (not isinstance(pixels, int) or pixels < unit or pixels % unit):
            raise ValueError(
                f"{name}={pixels!r}: pass a multiple of {unit}, the pixels of a patch{_nearest(pixels, unit)}"
            )
        size.append(trained if pixels is None else pixels // vae_scale_factor)
    return size[0], size[1]


def _nearest(pixels: Any, unit: int) -> str:
    """Propose the multiples of a unit around a number of pixels; nothing for what is no number."""
    if not isinstance(pixels, int):
        return ""
    below = max(pixels // unit, 1) * unit
    return f": {below}" if pixels < unit else f": {below} or {below + unit}"


def resized_positions(
    models: Sequence[PreTrainedModel], size: tuple[int, int], vae_scale_factor: int, policy: str | None
) -> list[Any]:
    """Return the positions of each model at a size; None for each if the size is the trained one.

    Args:
        models: Models of one trained size.
        size: Height and width of the latents.
        vae_scale_factor: Number of pixels along one side of a latent pixel.
        policy: "extend" or "interpolate", see `DiTModel.positions`; needed only at another size.

    Raises:
        ValueError: If the size is another one, and the policy is neither of the two.
    """
    trained = models[0].config.sample_height_width
    if size == trained:
        return [None] * len(models)
    if policy not in ("extend", "interpolate"):
        made, usual = ([side * vae_scale_factor for side in sides] for sides in (size, trained))
        raise ValueError(
            f"images of {made} pixels from a model of {usual}: pass position_policy='extend' or 'interpolate', not "
            f"{policy!r}"
        )
    return [on_its_device(model).positions(*size, policy) for model in models]


def check_noise(shape: tuple, generator: Any, latents: Tensor | None, device: torch.device) -> Generators:
    """Return the generators of a call as the samplers take them.

    Args:
        shape: Shape of the latents (B, C, H, W).
        generator: None, one generator, or a list or tuple of one per image.
        latents: Noise that the user passed, or None.
        device: Device of the model.

    Raises:
        ValueError: If there are not as many generators as images, one is no generator or on another device, or the
            noise has another shape.
    """
    many = isinstance(generator, (list, tuple))
    if many and len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} images: pass one, or one per image")
    for one in generator if many else [] if generator is None else [generator]:
        if not isinstance(one, torch.Generator):
            raise ValueError(f"generator={one!r}: pass torch.Generator().manual_seed(...), or one per image")
        if one.device.type not in ("cpu", device.type):
            raise ValueError(f"a generator on {one.device} for a pipeline on {device}: use its device")
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents have the shape {tuple(latents.shape)}, these images need {shape}")
    return list(generator) if many else generator


def draw_noise(shape: tuple, generator: Generators, latents: Tensor | None, device: torch.device) -> Tensor:
    """Return standard normal noise (B, C, H, W), drawn or as passed, in float32 whatever the model computes in."""
    noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents
    return noise.to(device, torch.float32)


def check_vae(vae: ModelMixin, in_channels: int) -> None:
    """Refuse a VAE of another kind, or whose latents do not fit a model with `in_channels` channels."""
    if not is_supported_vae(vae):
        raise ValueError(f"{type(vae).__name__} is not supported as a VAE: choose from {', '.join(AUTOENCODERS)}")
    config = vae.config
    channels, factor = config.latent_channels, config.get("scaling_factor")
    if channels != in_channels:
        raise ValueError(f"the VAE has latent_channels={channels}, the model in_channels={in_channels}: unequal")
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ValueError(f"the VAE has scaling_factor={factor!r}: set a positive number, 1 over its latents' deviation")
    for name in ("latents_mean", "latents_std"):
        if config.get(name) and len(config[name]) != channels:
            raise ValueError(f"the VAE has {len(config[name])} numbers in {name} for {channels} latent channels")


@contextmanager
def vae_without_overflow(vae: ModelMixin) -> Iterator[torch.dtype]:
    """Bring a VAE to float32 for a while if it overflows in float16, as its `force_upcast` says; yield its dtype."""
    with ExitStack() as stack:
        stack.enter_context(lock_of(vae))  # another thread may be doing so
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae.to(torch.float32)
            stack.callback(vae.to, torch.float16)
        else:
            stack.close()
        yield vae.dtype


@torch.no_grad()
def encode_images(vae: ModelMixin | None, pixels: Tensor, batch_size: int) -> Tensor:
    """Encode pixels (B, 3, height, width) in [-1, 1] to the mean of their latents (B, C, H, W), scaled as trained.

    Args:
        vae: VAE, or None for a model of pixels, whose latents the pixels are.
        pixels: Images.
        batch_size: Number of images that the VAE encodes at once.
    """
    if vae is None:
        return pixels
    with vae_without_overflow(vae) as dtype:
        chunks = pixels.to(dtype).split(batch_size)
        latents = torch.cat([mean_latents(vae.encode(chunk)).float() for chunk in chunks])
    return scale_latents(latents, vae.config)


@torch.no_grad()
def decode_latents(vae: ModelMixin | None, latents: Tensor, batch_size: int) -> Tensor:
    """Decode latents (B, C, H, W) to pixels (B, 3, height, width) in about [-1, 1].

    Args:
        vae: VAE, or None for a model of pixels, whose latents the pixels are.
        latents: Latents, scaled as trained.
        batch_size: Number of images that the VAE decodes at once.

    Raises:
        FloatingPointError: If a pixel is not finite.
    """
    if vae is None:
        return latents
    with vae_without_overflow(vae) as dtype:
        chunks = unscale_latents(latents, vae.config).to(dtype).split(batch_size)
        pixels = torch.cat([vae.decode(chunk).sample.float() for chunk in chunks])
    if not torch.isfinite(pixels).all():
        raise FloatingPointError(f"the VAE's images are not finite in {dtype}: call pipe.vae.float()")
    return pixels

# --- sampling/class_names.py ---
# Class ids for what a user passes: names and ids, one for each image.
#
# Which class a name stands for is decided in `class_names.py` of the ground floor.

def ids_of_names(names: str | Sequence[str], id2label: Mapping[int, str]) -> list[int]:
    """Map class names to class ids.

    Args:
        names: One name, or a list of names.
        id2label: Labels by class id.

    Raises:
        ValueError: If no class or several classes have a name.
    """
    known = names_to_ids(id2label)
    return [_id_of_name(name, known, id2label) for name in ([names] if isinstance(names, str) else names)]


def _id_of_name(name: str, known: Mapping[str, list[int]], id2label: Mapping[int, str]) -> int:
    ids = known.get(normal_name(name), [])
    if len(ids) > 1:
        labels = ", ".join(f"{class_id} {id2label[class_id]!r}" for class_id in ids)
        raise ValueError(
            f"{name!r} names the classes {', '.join(map(str, ids))}: pass one of these ids, or a whole label ({labels})"
        )
    if not known:
        raise ValueError(f"class {name!r}: this pipeline has no id2label, pass ids instead of names")
    if not ids:
        spelled = {each.casefold(): each for each in known}
        near = difflib.get_close_matches(normal_name(name).strip().casefold(), spelled, n=3, cutoff=0.4)
        close = " or ".join(repr(spelled[each]) for each in near)
        number = f" For the id {name.strip()}, pass a number, not a text." if name.strip().isdecimal() else ""
        raise ValueError(f"no class is named {name!r}: did you mean {close or 'one of pipe.labels'}?{number}")
    return ids[0]


def labels_of_text(text: str, names: Collection[str]) -> list[int | str]:
    """Turn labels that a user typed, separated by commas, into ids and names.

    A name that holds a comma is one label, and digits are a name if a class has it. Example: if the names are "10" and
    "beach, summer", the text "10, beach, summer, 7" is ["10", "beach, summer", 7].

    Args:
        text: Such as "3, panda face".
        names: Names of the classes, as `names_to_ids` returns them.
    """
    labels: list[int | str] = []
    parts = [part.strip() for part in normal_name(text).split(",")]
    while parts:
        length = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in names), 1)
        label, parts = ", ".join(parts[:length]), parts[length:]
        if label:
            labels.append(int(label) if label.isdecimal() and label not in names else label)
    return labels


def class_ids(class_labels: Any, config: Any, id2label: Mapping[int, str]) -> list[int]:
    """Map ids and names, which may be mixed, to ids of classes.

    Args:
        class_labels: An id, a name, or a list, tuple, tensor or array of them. The id of the null class, num_classes,
            asks for an image of no class.
        config: Configuration of the model.
        id2label: Labels by class id; empty if the classes have no names.

    Raises:
        ValueError: If a label is neither an id of a class nor the name of one class.
    """
    labels = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
    labels = labels if isinstance(labels, (list, tuple)) else [labels]
    if not labels:
        raise ValueError("class_labels is empty: pass at least one id or name")
    ids = [_class_id(position, label, config, id2label) for position, label in enumerate(labels)]
    warn_of_null_class(ids, config.num_classes)
    _warn_of_names(
        [class_id for label, class_id in zip(labels, ids, strict=True) if not isinstance(label, str)], id2label
    )
    return ids


def _warn_of_names(ids: Sequence[int], id2label: Mapping[int, str]) -> None:
    """Warn of ids that are names of other classes, if all names are numbers: "1", "10", "2" have the ids 0, 1, 2."""
    names = {label.strip(): class_id for class_id, label in id2label.items()}
    for class_id in dict.fromkeys(ids) if all(map(str.isdecimal, names)) else ():
        if (named := names.get(str(class_id), class_id)) != class_id:
            _warn_once(
                f"the id {class_id} is the class {id2label.get(class_id)!r}; for the class named '{class_id}', whose "
                f"id is {named}, pass the text '{class_id}'"
            )


@functools.cache
def _warn_once(message: str) -> None:
    logging.get_logger(__name__).warning(message)


def warn_of_null_class(ids: Collection[int], num_classes: int) -> None:
    """Warn if one of the ids is that of the null class, which may be meant, or one too many."""
    if num_classes in ids:
        message = f"class {num_classes} is the null class: its images are of no class in particular"
        logging.get_logger(__name__).warning(message)


def _class_id(position: int, label: Any, config: Any, id2label: Mapping[int, str]) -> int:
    if isinstance(label, str):
        return ids_of_names(label, id2label)[0]
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise ValueError(f"class_labels[{position}]={label!r} is neither a whole number nor a name")
    if not 0 <= operator.index(label) < config.num_classes + config.has_null_class:
        null = f", or {config.num_classes} for no class" if config.has_null_class else ""
        raise ValueError(f"class_labels[{position}]={label} is outside 0..{config.num_classes - 1}{null}")
    return operator.index(label)


def label_batch(
    class_labels: Any, num_images_per_label: int, num_images: int | None, config: Any, id2label: Mapping[int, str]
) -> list[int] | list[None]:
    """Return one class id per image, or one None per image of an unconditional model.

    Args:
        class_labels: As in `class_ids`; None for an unconditional model.
        num_images_per_label: Number of images of each label, next to each other.
        num_images: Number of images; only for an unconditional model.
        config: Configuration of the model.
        id2label: Labels by class id.

    Raises:
        ValueError: If the labels do not fit the model, or a number is less than 1.
    """
    check_count("num_images_per_label", num_images_per_label)
    if config.num_classes == 0:
        if class_labels is not None:
            raise ValueError(f"class_labels={class_labels!r}: the model is unconditional, pass num_images instead")
        check_count("num_images", 1 if num_images is None else num_images)
        return [None] * (num_images or 1) * num_images_per_label
    if num_images is not None:
        raise ValueError(f"num_images={num_images} is for unconditional models: pass num_images_per_label instead")
    if class_labels is None:
        raise ValueError(f"class_labels=None: the model has {config.num_classes} classes, pass ids or names")
    return [class_id for class_id in class_ids(class_labels, config, id2label) for _ in range(num_images_per_label)]

# --- sampling/defaults.py ---
# What a call of a pipeline takes where it names no guidance or no number of steps.
#
# A pipeline may state both in its `model_index.json`. Without a statement, the scale of guidance is 4, as in diffusers'
# `DiTPipeline`, and the number of steps is the scheduler's usual one.

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

# --- sampling/rehearsal.py ---
# Rehearse the steps of a scheduler before the model runs.
#
# Some settings of diffusers' schedulers end in an exception or in NaN after many steps: timesteps that repeat, rounded
# noise levels, combinations that a class does not implement. Example: a solver that divides by the difference of two
# noise levels, and takes as many steps as there are timesteps. A rehearsal on four numbers finds them all; it takes 0.1
# to 3 ms a step, once for each combination of settings.

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
PASSED: set[int] = set()  # hashes of the settings that were rehearsed with success


def rehearse(scheduler: SchedulerMixin, timesteps: Tensor, arguments: dict[str, Any], has_variance: bool) -> None:
    """Refuse steps in which a scheduler fails, or makes numbers that are not finite.

    Args:
        scheduler: Scheduler whose timesteps are set; it is not changed.
        timesteps: Timestep of each evaluation of the model (N,).
        arguments: Further arguments of the scheduler's `step`.
        has_variance: Whether `step` takes a variance beside epsilon.

    Raises:
        ValueError: If a step fails; the message names the step and the scheduler's settings.
    """
    settings = ", ".join(f"{name}={value!r}" for name, value in scheduler.config.items() if not name.startswith("_"))
    key = hash((type(scheduler), settings, *timesteps.tolist(), arguments.get("eta"), has_variance))
    if key in PASSED or not traits_of(scheduler).is_rehearsed:
        return
    if "generator" in arguments:  # the user's generator draws for the images only
        arguments = {**arguments, "generator": torch.Generator().manual_seed(0)}
    scheduler, x = copy.deepcopy(scheduler), torch.ones(1, 1, 2, 2)  # (B, C, H, W)
    for step, t in enumerate(timesteps):
        try:
            answer = (scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x) / 2
            if has_variance:
                answer = torch.cat([answer, torch.zeros_like(answer)], dim=1)  # (B, 2C, H, W)
            x = scheduler.step(answer, t, x, **arguments).prev_sample
            why = None if torch.isfinite(x).all() else "its numbers are not finite"
        except FAILURES as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            raise ValueError(
                f"{type(scheduler).__name__} fails in step {step + 1} of {len(timesteps)} (t = {t:g}), {why}: pass "
                f"another number of steps, other settings, or another scheduler. Its settings: {settings}"
            )
    PASSED.add(key)

# --- sampling/denoising.py ---
# Denoising: the model's answer at each step of a call, guided, in the form that the scheduler's `step` takes.
#
# Legend: B images, C latent channels, H and W latent height and width, L distinct labels of a call, T' timesteps of a
# window.

def cached_model(transformer: Any) -> Any:
    """Return the transformer, without the wrapper of `torch.compile`, if one of diffusers' caches is enabled on it."""
    model = getattr(transformer, "_orig_mod", transformer)
    return model if getattr(model, "_cache_config", None) is not None else None


@contextmanager
def cache_to_oneself(cached: Any) -> Iterator[None]:
    """Let a call have an enabled cache to itself, which it finds empty; other calls of other threads wait."""
    if cached is None:
        yield
        return
    with lock_of(cached):
        CacheMixin._reset_stateful_cache(cached)
        yield


@dataclass
class Denoising:
    """All that a call has settled before its loop.

    Args:
        transformer: Model.
        scheduler: Scheduler whose timesteps are set.
        timesteps: Timestep of each evaluation of the model (N,), in host memory.
        labels: Class id of each image, or None for each (B,).
        guidance: Guidance with its plan.
        positions: Positions of the transformer, and of the guide model if there is one; None for their own.
        conditioning_bytes: Most memory that precomputed conditionings may take.
        prediction_type: What the model predicts, as in `check_scheduler`; a guide model predicts the same.
    """

    transformer: PreTrainedModel
    scheduler: SchedulerMixin
    timesteps: Tensor
    labels: list[int] | list[None]
    guidance: Guidance
    positions: list[Any]
    conditioning_bytes: int
    prediction_type: str

    def steps(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield for each step a function from latents (B, C, H, W) to what the scheduler takes, (B, C or 2C, H, W)."""
        guide_model = self.guidance.guide_model
        conditionings = self._conditionings(self.transformer, device)
        weak = None if guide_model is None else self._conditionings(guide_model, device)
        for step, conditioning in enumerate(conditionings):
            weak_conditioning = None if weak is None else next(weak)
            yield partial(self._denoise, step, conditioning, weak_conditioning)

    def _conditionings(self, model: PreTrainedModel, device: torch.device) -> Iterator[Any]:
        """Yield the conditioning of each step; a step guided by the null class has 2B rows: B labels, B null classes.

        A conditioning is computed once for each timestep and distinct label, for as many steps at once as memory
        allows, so that the loop reads none of the parameters that serve it: a third of the model in adaLN-Zero.
        """
        config, ts = model.config, self.timesteps
        paired = [self.guidance.is_paired(step) for step in range(len(ts))]
        distinct = [*dict.fromkeys(self.labels), *([config.null_class_id] if any(paired) else [])]  # L labels
        plain = torch.tensor([distinct.index(label) for label in self.labels], device=device)  # (B,)
        both = torch.cat([plain, torch.full_like(plain, len(distinct) - 1)])  # (2B,)
        ids = None if config.num_classes == 0 else torch.tensor(distinct, device=device)  # (L,)
        # an upper bound: 6D for each block, and 3D for the final layer and the embedding
        step_bytes = 6 * config.hidden_size * (config.num_hidden_layers + 1) * len(distinct) * model.dtype.itemsize
        window = max(1, self.conditioning_bytes // 2 // step_bytes)  # half: two live while one follows the other
        for begin in range(0, len(ts), window):
            t = ts[begin : begin + window].to(device)  # (T',)
            arguments = {"timestep": t.repeat_interleave(len(distinct))}  # (T' L,)
            if ids is not None:
                arguments["class_labels"] = ids.repeat(len(t))
            if config.has_null_class:  # no label is dropped, also if the model is in training mode
                arguments["drop_labels"] = torch.zeros(len(t) * len(distinct), dtype=torch.bool, device=device)
            table = on_its_device(model).condition(**arguments)  # (T' L, ...)
            for step in range(len(t)):
                rows = (both if paired[begin + step] else plain) + step * len(distinct)
                # copies, not views: a compiled model would be compiled again for a view's offset
                blocks = tuple(None if block is None else block[rows] for block in table.blocks)
                final = None if table.final is None else table.final[rows]
                yield table._replace(embedding=table.embedding[rows], blocks=blocks, final=final)

    def _denoise(self, step: int, conditioning: Any, weak_conditioning: Any, latents: Tensor) -> Tensor:
        model, t, guidance = self.transformer, self.timesteps[step], self.guidance
        x = latents  # the scheduler's step takes these, unscaled
        if hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        with self._cache_context(step):
            batch = torch.cat([x, x]) if guidance.is_paired(step) else x
            answer = self._evaluate(step, model, batch, conditioning, self.positions[0])
        if guidance.is_guided[step]:
            if guidance.guide_model is None:
                cond, other = answer.chunk(2)  # (B, C or 2C, H, W)
            else:
                cond = answer
                other = self._evaluate(step, guidance.guide_model, x, weak_conditioning, self.positions[1])
            answer = guidance.combine(step, t, cond, other)
        return answer if takes_variance(self.scheduler, model.config.learn_sigma) else answer[:, : latents.shape[1]]

    def _evaluate(self, step: int, model: PreTrainedModel, x: Tensor, conditioning: Any, positions: Any) -> Tensor:
        """Return the model's answer as the scheduler reads it, float32."""
        resized = {} if positions is None else {"positions": positions}
        answer: Tensor = model(x.to(model.dtype), conditioning=conditioning, **resized).sample
        if self.prediction_type == "flow_sample":
            x_0 = answer[:, : x.shape[1]].float()
            return velocity(self.scheduler, step, x, x_0)
        return answer.to(torch.float32, copy=True)  # a CUDA graph's next replay would overwrite it

    def _cache_context(self, step: int) -> AbstractContextManager:
        cached = cached_model(self.transformer)
        if cached is None:
            return nullcontext()
        cached.current_timestep = self.timesteps[step]  # one of the caches asks for it
        level = float(noise_levels(self.scheduler, self.timesteps[step : step + 1])[0])
        if not (traits_of(self.scheduler).flow or self.scheduler.config.prediction_type == "flow_prediction"):
            level /= 1 + level  # the time of flow matching with the same ratio of noise
        where = {"step_index": step, "num_inference_steps": len(self.timesteps), "sigma": level}
        # contexts of their own, as the batch is another
        name = "guided" if self.guidance.is_guided[step] else "unguided"
        return CacheMixin.cache_context(cached, name, **where, timestep=self.timesteps[step])

# --- sampling/sources.py ---
# Images to begin with: read as in training, encoded, noised, and put back where a mask keeps them.
#
# Legend: B images, C latent channels, H and W latent height and width; height and width in pixels.

class SourceImage(NamedTuple):
    """What an image-to-image pipeline starts from, as the user passed it."""

    image: PipelineImageInput
    strength: float
    mask_image: PipelineImageInput | None = None


class EncodedSource(NamedTuple):
    """A source image as tensors; a mask is 1 where something new is drawn, 0 where the image is kept."""

    pixels: Tensor  # (B or 1, 3, height, width) in [-1, 1]
    latents: Tensor  # (B or 1, C, H, W)
    mask: Tensor | None  # (B or 1, 1, height, width)
    latent_mask: Tensor | None  # (B or 1, 1, H, W)


def read_images(
    name: str, images: PipelineImageInput, processor: VaeImageProcessor, shape: tuple, num_channels: int
) -> Tensor:
    """Read images or masks, and resize them to the pixels of the latents.

    Args:
        name: Argument that the images were passed as.
        images: One image, or a list of them: PIL images of any mode, read as in training (16 bits, transparency, EXIF);
            arrays (height, width, channels) or tensors (channels, height, width) of uint8, or of numbers in 0..1.
        processor: Processor of diffusers for the values wanted.
        shape: Shape of the latents (B, C, H, W).
        num_channels: Number of channels wanted: 3 for colours, 1 for grey and for masks.

    Returns:
        Tensor (B or 1, channels, height, width) in float32 on the CPU.

    Raises:
        ValueError: If there is neither one image nor one per image to make, an image cannot be read, or it has other
            channels or values outside the limits.
    """
    many = isinstance(images, (list, tuple))
    read = [_as_numbers(name, image, processor, num_channels) for image in (images if many else [images])]
    height, width = (side * processor.config.vae_scale_factor for side in shape[2:])
    tensor = processor.preprocess(read if many else read[0], height, width).to(torch.float32)
    if len(tensor) not in (1, shape[0]):
        raise ValueError(f"{name} holds {len(tensor)} for {shape[0]} images: pass one, or one per image")
    if tensor.shape[1] != num_channels:
        raise ValueError(f"{name} has {tensor.shape[1]} channels: pass PIL images, or {num_channels} channels")
    if not tensor.abs().max() <= 1:  # also if a value is NaN
        raise ValueError(
            f"{name} has values up to {tensor.abs().max():g} after scaling: pass numbers in 0..1, or uint8"
        )
    return tensor


def _as_numbers(name: str, image: Any, processor: VaeImageProcessor, num_channels: int) -> Any:
    """Return an image in a form that diffusers' processor reads rightly: 8 bits of RGB or grey, or numbers in 0..1."""
    if isinstance(image, Image.Image):
        return to_rgb(image) if num_channels == 3 else to_rgb(image).convert("L")
    if not isinstance(image, (np.ndarray, Tensor)):
        return image
    kind = str(image.dtype).removeprefix("torch.")
    if kind.startswith(("float", "bfloat")):
        return image
    if kind not in ("uint8", "bool"):
        raise ValueError(f"{name} has values of type {kind}: pass PIL images, uint8, or numbers in 0..1")
    is_binary = kind == "bool" or (processor.config.do_binarize and image.max() <= 1)
    scale = 1 if is_binary else 255
    return image.astype(np.float32) / scale if isinstance(image, np.ndarray) else image.float() / scale


def encode_source(
    vae: ModelMixin | None, pixels: Tensor, mask: Tensor | None, vae_scale_factor: int, batch_size: int
) -> EncodedSource:
    """Encode a source image (B or 1, 3, height, width), and bring its mask (B or 1, 1, height, width) to latents' size.

    A latent pixel is drawn anew if any of its pixels is.
    """
    latent_mask = None if mask is None else F.max_pool2d(mask, vae_scale_factor)  # (B or 1, 1, H, W)
    return EncodedSource(pixels, encode_images(vae, pixels, batch_size), mask, latent_mask)


def put_back(latents: Tensor, source: EncodedSource, noise: Tensor, scheduler: SchedulerMixin, t: Tensor) -> Tensor:
    """Replace latents outside the mask by those of the source, at the noise level of t (1,).

    Source: Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, without resampling.
    """
    if source.latent_mask is None:
        return latents
    known = add_noise(scheduler, source.latents, noise, t)
    return torch.where(source.latent_mask > 0, latents, known)  # (B, C, H, W)


def first_latents(
    scheduler: SchedulerMixin, noise: Tensor, source: EncodedSource | None, first_timestep: Tensor
) -> Tensor:
    """Return what the loop begins with (B, C, H, W): noise at the scheduler's scale, or a source with noise on it."""
    if source is not None:
        return add_noise(scheduler, source.latents, noise, first_timestep)
    # flow matching schedulers start at scale 1 and have no such field
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)

# --- pipeline_dit.py ---
# `DiTPipeline`: from class labels to images; the loop, loading and saving, and the doors to the rest of the package.
#
# `save_pretrained` writes this file and what it is made of beside the weights, as one file that runs without the package
# (see `saved_code.py`). So a method that needs another room of the package imports it when it is called, by `import_for`.
# Legend: B images, C latent channels, H and W latent height and width.

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class DiTPipeline(Watched, DiTLoraLoaderMixin, DiffusionPipeline):
    """Class-conditional image generation with a DiT.

    Args:
        transformer: `DiTModel`.
        vae: `AutoencoderKL` or the like with the transformer's latent channels; None for a model of pixels.
        scheduler: One of `dit_hf.sampling.schedulers.SCHEDULERS`; it can be replaced later.
        id2label: Class names by id; several names of a class are separated by commas. Kept in `model_index.json`.
        guidance_channels: "first_three", as in the published numbers, or "all".
        prediction_type: What the model was trained to predict; None if the scheduler says it. Flow matching needs
            "flow_prediction" (the velocity noise - x_0) or "flow_sample" (x_0), as its schedulers do not say it. Kept
            in `model_index.json`.
        guidance_scale: Scale of guidance of a call that names none; None for 4. Kept in `model_index.json`.
        num_inference_steps: Number of steps of a call that names none, for this scheduler, or numbers by class names of
            schedulers; None for the scheduler's usual number. Kept in `model_index.json`.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _transformer_module = "dit_hf.modeling_dit"  # where `from_pretrained` finds DiTModel

    conditioning_bytes = 2**29  # most memory for precomputed conditionings; may be set
    decode_batch_size = 16  # images that the VAE decodes at once; may be set

    def __init__(
        self,
        transformer: PreTrainedModel,
        vae: ModelMixin | None,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
        guidance_channels: str = "all",  # diffusers reads annotations when loading, and knows no Literal
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        config = transformer.config
        if getattr(config, "model_type", None) != "dit":
            raise ValueError(f"{type(transformer).__name__} is not a DiTModel: convert it with dit_hf.conversion")
        if vae is not None:
            check_vae(vae, config.in_channels)
        check_guidance_channels(guidance_channels)
        predicted = check_scheduler(scheduler, prediction_type, config.learn_sigma)
        if vae is not None:
            warn_of_clipping(scheduler)
        names = {int(class_id): str(label) for class_id, label in (id2label or {}).items()}
        outside = [class_id for class_id in names if not 0 <= class_id < config.num_classes]
        if outside:
            raise ValueError(f"id2label has the id {outside[0]}, the transformer the ids 0..{config.num_classes - 1}")
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=names or None, guidance_channels=guidance_channels, prediction_type=predicted)
        own = {"guidance_scale": check_own_guidance(guidance_scale, config)}
        self.register_to_config(**own, num_inference_steps=check_own_steps(num_inference_steps, scheduler))
        factor = self.vae_scale_factor = 1 if vae is None else vae_shrink_factor(vae.config)
        self.image_channels = config.in_channels if vae is None else vae.config.in_channels
        processor = functools.partial(VaeImageProcessor, vae_scale_factor=factor)  # to multiples of which it resizes
        self.image_processor = processor()
        self.mask_processor = processor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        self.current_timestep: Tensor | None = None  # callbacks for diffusers' caches ask for it

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name, without names that several classes share; each synonym in ImageNet's labels is one."""
        id2label = self.config.id2label or {}
        ids = names_to_ids(id2label)
        return {name: ids[name][0] for name in synonyms_to_ids(id2label) if len(ids[name]) == 1}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Map class names to ids.

        Args:
            label: A name or a list of names: whole labels of `id2label`, or synonyms in ImageNet's.

        Raises:
            ValueError: If no class or several classes have a name.
        """
        return ids_of_names(label, self.config.id2label or {})

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float | BaseGuidance | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        num_images_per_label: int = 1,
        num_images: int | None = None,
        guidance_channels: Literal["first_three", "all"] | None = None,
        eta: float = 0.0,
        callback_on_step_end: Callable[["DiTPipeline", int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        *,
        guidance_interval: tuple[float, float] | None = None,
        guidance_interval_unit: Literal["steps", "sigma"] = "steps",
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        position_policy: Literal["extend", "interpolate"] | None = None,
        guide_model: PreTrainedModel | None = None,
        _source: SourceImage | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images of the given classes.

        Args:
            class_labels: Id or name of a class, or a list in which both may stand; None for an unconditional model.
            guidance_scale: Scale of classifier-free guidance; at 1 and below there is no guidance, and no second pass
                through the model. Or a guider of diffusers, one of `dit_hf.sampling.guidance.GUIDERS`. None for the
                pipeline's own scale, or 4 if it states none.
            num_inference_steps: Number of steps in 1..T; None for the pipeline's own, or the scheduler's usual number.
            generator: Generator of all noise, or one per image, which makes an image independent of its batch.
            latents: Standard normal noise (B, C, H, W) to start from, instead of drawing it.
            output_type: Form of the images; "latent" for the final latents, undecoded.
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple.
            num_images_per_label: Number of images of each label, next to each other.
            num_images: Number of images; only for an unconditional model.
            guidance_channels: Channels that guidance moves; None for the pipeline's own setting.
            eta: Share of noise in [0, 1]; only for DDIM.
            callback_on_step_end: Function called as `(pipeline, step, timestep, {"latents": latents})` after each step;
                it may return a dictionary with other latents.
            guidance_interval: Guide only from the first to the second of these; None guides everywhere.
            guidance_interval_unit: "steps" for fractions of the steps from 0 (the start) to 1, the end left out;
                "sigma" for noise levels, the lower one left out: standard deviation of the noise divided by the factor
                of the data; in flow matching the time t.
            timesteps: Falling whole numbers of the training schedule instead of `num_inference_steps`, if the scheduler
                takes them.
            sigmas: Falling noise levels in the scheduler's own terms, if it takes them.
            height: Height of the images in pixels; None for the trained one.
            width: Width of the images in pixels; None for the trained one.
            position_policy: How to place patches at another size; see `DiTModel.positions`.
            guide_model: Weaker DiT, trained less or smaller, whose answer guidance moves away from instead of the
                answer for the null class (autoguidance, Karras et al. 2024, arXiv 2406.02507).

        Raises:
            ValueError: If an argument is outside its limits; raised before any work.
            FloatingPointError: If latents or images stop being finite; the message names the step.

        Source: Peebles & Xie 2022 (arXiv 2212.09748), sections 3.1 and 4.
        """
        config, device, call = self.transformer.config, self._execution_device, self._for_one_call()
        scheduler = call.scheduler  # it keeps a state: calls in several threads may share the pipeline
        labels = label_batch(class_labels, num_images_per_label, num_images, config, self.config.id2label or {})
        size = latent_size(config, self.vae_scale_factor, height, width)
        models = [self.transformer, *([] if guide_model is None else [guide_model])]
        scale = usual_guidance_scale(self) if guidance_scale is None else guidance_scale
        guidance = Guidance(scale, guidance_channels or self.config.guidance_channels, guide_model, config)
        positions = resized_positions(models, size, self.vae_scale_factor, position_policy)
        predicted = check_scheduler(scheduler, self.config.prediction_type, config.learn_sigma)
        if self.vae is not None:
            warn_of_clipping(scheduler)  # it may be another one than at first
        check_callback(callback_on_step_end)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose from {', '.join(OUTPUT_TYPES)}")
        shape = (len(labels), config.in_channels, *size)  # (B, C, H, W)
        generator = check_noise(shape, generator, latents, device)
        arguments = step_arguments(scheduler, generator, eta)
        if num_inference_steps is None and timesteps is None and sigmas is None:
            num_inference_steps = usual_num_steps(self)
        ts = set_timesteps(scheduler, num_inference_steps, timesteps, sigmas)  # (N,) in host memory
        ts = ts if _source is None else start_midway(scheduler, _source.strength)
        rehearse(scheduler, ts, arguments, takes_variance(scheduler, config.learn_sigma))
        guidance.plan(ts, guidance_interval, guidance_interval_unit, functools.partial(noise_levels, scheduler))
        if (cached := cached_model(self.transformer)) is not None:
            import_for("a cache", "dit_hf.caches").check(cached._cache_config, guidance.is_guided)

        source = None if _source is None else self._encode_source(_source, shape)
        noise = draw_noise(shape, generator, latents, device)
        latents = first_latents(scheduler, noise, source, ts[:1])  # (B, C, H, W)
        denoising = Denoising(
            self.transformer, scheduler, ts, labels, guidance, positions, self.conditioning_bytes, predicted
        )
        self._num_timesteps = call._num_timesteps = len(ts)
        first_bad = torch.full((), len(ts), device=device)
        with cache_to_oneself(cached):
            for step, (t, denoise) in enumerate(zip(self.progress_bar(ts), denoising.steps(device), strict=True)):
                self.current_timestep = t
                answer = denoise(latents)  # (B, C or 2C, H, W)
                latents = scheduler.step(answer, t, latents, **arguments).prev_sample  # (B, C, H, W)
                if source is not None and step + 1 < len(ts):
                    latents = put_back(latents, source, noise, scheduler, ts[step + 1 : step + 2])
                # kept on the device, so that the loop never waits for it
                first_bad = torch.where(torch.isfinite(latents).all(), first_bad, first_bad.clamp(max=step))
                if callback_on_step_end is not None:
                    latents = (callback_on_step_end(call, step, t, {"latents": latents}) or {}).get("latents", latents)
                if call.interrupt or self._interruptions > call._interruptions_before:
                    break
        if first_bad < len(ts):
            raise FloatingPointError(
                f"latents are not finite after step {first_bad} (t = {ts[first_bad]:g}): lower "
                "guidance_scale, use bfloat16 or float32, or look at the weights"
            )
        images = latents if output_type == "latent" else self._decode(latents, output_type, source)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _encode_source(self, source: SourceImage, shape: tuple) -> EncodedSource:
        device, mask = self._execution_device, None
        pixels = read_images("image", source.image, self.image_processor, shape, self.image_channels).to(device)
        if source.mask_image is not None:
            mask = read_images("mask_image", source.mask_image, self.mask_processor, shape, 1).to(device)
        return encode_source(self.vae, pixels, mask, self.vae_scale_factor, self.decode_batch_size)

    def _decode(self, latents: Tensor, output_type: str, source: EncodedSource | None = None) -> Any:
        images = decode_latents(self.vae, latents, self.decode_batch_size)  # (B, 3, height, width)
        if source is not None and source.mask is not None:
            images = torch.where(source.mask > 0, images, source.pixels)
        return self.image_processor.postprocess(images, output_type)

    def enable_cache(self, config: Any) -> None:
        """Let blocks repeat or extrapolate what they computed in earlier steps; the images change a little.

        Args:
            config: Configuration of one of diffusers' caches; `dit_hf.caches` names those that serve a DiT.

        Raises:
            ImportError: If this file runs without the package.
            ValueError: If a cache or a setting would do nothing, or a DiT cannot serve it.
        """
        import_for("enable_cache", "dit_hf.caches").enable(self, config)

    def disable_cache(self) -> None:
        """Compute every step in full again."""
        CacheMixin.disable_cache(getattr(self.transformer, "_orig_mod", self.transformer))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "DiTPipeline":
        """Make a pipeline of this class that shares the parts of another, which keep their dtypes.

        Args:
            pipeline: `DiTPipeline` or one of the image pipelines.
            **kwargs: Parts or settings that differ, such as `scheduler`.

        Raises:
            ValueError: If the parts do not fit.
        """
        kept = {name: pipeline.config.get(name) for name in PIPELINE_SETTINGS if pipeline.config.get(name) is not None}
        return cls(**{**pipeline.components, **kept, **kwargs})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, verify: bool = True, **kwargs: Any
    ) -> "DiTPipeline":
        """Load a pipeline as diffusers does; with the package installed also one that others packaged.

        Args:
            pretrained_model_name_or_path: Folder or id on the Hub, in this project's form or in diffusers' own (such as
                facebook/DiT-XL-2-256); or the file of an original checkpoint, with `vae`: an autoencoder, its folder or
                its id, or None for a model of pixels.
            verify: Whether to compare what came from the Hub with the Hub's hashes; only with the package.
            **kwargs: Arguments of diffusers' method; for weights of others also what `dit_hf.conversion` takes.

        Raises:
            OSError: If the Hub or its cache cannot be used, or a file does not have the Hub's hash.
            ValueError: If there is no such folder, with what to pass instead; or if a part is missing or damaged; for
                weights of others the message names the key.
        """
        source, load = pretrained_model_name_or_path, super().from_pretrained
        if not IN_PACKAGE:
            return load(source, **kwargs)
        check_pipeline_source(source, **places_to_look(kwargs))
        load_pipeline = import_for("from_pretrained", "dit_hf.conversion").load_pipeline
        if Path(source).exists():
            for folder in Path(source).glob("*/"):
                refuse_two_forms(folder, kwargs.get("variant"))
            return load_pipeline(cls, load, source, **kwargs)
        call = functools.partial(load_pipeline, cls, load, source, **kwargs)
        given = {"revision", "cache_dir", "local_files_only", "token"} & kwargs.keys()
        hub = {name: kwargs[name] for name in given if kwargs[name] is not None}
        load_from_hub = import_for("from_pretrained", "dit_hf.hub.load").load_from_hub
        pipeline = load_from_hub(str(source), call, variant=kwargs.get("variant"), **hub)
        import_for("from_pretrained", "dit_hf.hub.verify").check_cached(str(source), verify=verify, **hub)
        return pipeline

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, format: Literal["dit_hf", "diffusers"] = "dit_hf", **kwargs: Any
    ) -> None:
        """Write the pipeline's folder, with its code; diffusers' method.

        Args:
            save_directory: Folder.
            *args: Arguments of diffusers' method.
            format: "dit_hf" loads with and without this package; "diffusers" is for diffusers' own `DiTPipeline`, which
                guides all channels, samples with DDIM, and cannot run every model.
            **kwargs: Arguments of diffusers' method.

        Raises:
            ValueError: If the format is unknown, an adapter is loaded, or diffusers' own pipeline cannot run this one.
        """
        if format not in ("dit_hf", "diffusers"):
            raise ValueError(f"format={format!r}: choose from dit_hf, diffusers")
        refuse_adapters(self.transformer, "saving")
        if kwargs.pop("push_to_hub", False):
            raise ValueError("push_to_hub=True would be public by default: call the method push_to_hub instead")
        with replaced_whole(Path(save_directory)) as folder:
            if format == "dit_hf":
                super().save_pretrained(folder, *args, **kwargs)
            else:
                conversion = import_for("format='diffusers'", "dit_hf.conversion")
                conversion.save_for_diffusers(self, folder, *args, **kwargs)
        remove_older_code(Path(save_directory))

    def export(
        self,
        save_directory: str | Path,
        format: Literal["openvino", "onnx", "torch"] = "openvino",
        dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    ) -> None:
        """Write the pipeline as fixed graphs for a runtime, in a folder that `from_pretrained` loads.

        Args:
            save_directory: New folder.
            format: Runtime that is to compute the graphs.
            dtype: Number format to compute in; `dit_hf.runtime.engines` says which one a runtime has.

        Raises:
            ImportError: If this file runs without the package, or a package of the runtime is missing.
            ValueError: If the folder is taken, the runtime lacks the number format, or the pipeline cannot be exported.
        """
        source = str(self.config.get("_name_or_path") or "")
        export_pipeline = import_for("export", "dit_hf.runtime.export").export_pipeline
        export_pipeline(self, save_directory, format=format, dtype=dtype, source=source)

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the index so that it loads with and without the package, and the code; `save_pretrained` ends so."""
        super().to_json_file(json_file_path)
        room = __name__.rpartition(".")[0]  # of this file and of the image pipelines
        pipeline_class = next(cls for cls in type(self).__mro__ if cls.__module__.rpartition(".")[0] == room)
        names = {"_class_name": ["pipeline_dit", pipeline_class.__name__], "transformer": ["modeling_dit", "DiTModel"]}
        update_json(Path(json_file_path), **names)
        write_code(Path(json_file_path).parent, self.transformer)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        """Read the index so that the package's own classes are taken, never the code that lies beside the weights."""
        index = super()._dict_from_json_file(json_file, **kwargs)
        if IN_PACKAGE and index.get("transformer") == ["modeling_dit", "DiTModel"]:
            import_for("from_pretrained", "dit_hf.modeling_dit")  # diffusers takes classes of imported modules only
            index["_class_name"] = cls.__name__
            index["transformer"] = [cls._transformer_module, "DiTModel"]
        elif IN_PACKAGE and index.get("transformer") == ["dit_hf.runtime.transformer", "ExportedDiT"]:
            import_for("from_pretrained", "dit_hf.runtime")
        elif IN_PACKAGE and cls._transformer_module != "transformers" and "diffusers" in index.get("transformer", []):
            index["transformer"] = [cls._transformer_module, "DiTModel"]  # `from_pretrained` converts it
        return index

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch a pipeline from the Hub, without its code if the package is installed; see diffusers' method."""
        # there diffusers knows libraries by a fixed list, and would look for any other in the repository
        downloading = type(cls.__name__, (cls,), {"__module__": cls.__module__, "_transformer_module": "transformers"})
        return super(DiTPipeline, downloading).download(pretrained_model_name, **kwargs)  # type: ignore[misc]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        license: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
    ) -> Any:
        """Save the pipeline in a repository of the Hub, with its code and a model card; only what changed is sent.

        Args:
            repo_id: "user/name"; the repository is created if it does not exist.
            private: False for a repository that everybody sees; True refuses one that is public.
            license: Licence of the weights for the model card, such as "apache-2.0"; None keeps what the card states.
            revision: Branch, made from `main` if it does not exist; None for `main`.
            commit_message: First line of the commit.
            create_pr: Whether to open a pull request instead of committing.
            token: Token with write access; None for the one of `hf auth login` or HF_TOKEN.

        Returns:
            The commit, as `huggingface_hub.CommitInfo`.

        Raises:
            ImportError: If this file runs without the package.
            OSError: If the Hub cannot be used, in one line with the remedy.
            ValueError: If something would be sent or seen that should not be.
        """
        push = import_for("push_to_hub", "dit_hf.hub.push")
        options = {"revision": revision, "commit_message": commit_message, "create_pr": create_pr, "token": token}
        return push.push_pipeline(self, repo_id, private=private, license=license, **options)

# --- image_pipelines.py ---
# Pipelines that begin with an image: image to image, its inversion to noise, and inpainting.

class DiTImg2ImgPipeline(DiTPipeline):
    """Image to image: add noise to an image, and denoise it as another class, or the same (SDEdit, Meng et al. 2022).

    The pipeline takes the parts of `DiTPipeline`; `DiTImg2ImgPipeline.from_pipe(pipeline)` shares them.
    """

    def __call__(
        self,
        image: PipelineImageInput,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        strength: float = 0.6,
        **arguments: Any,
    ) -> ImagePipelineOutput | tuple:
        """Change images.

        Args:
            image: One image, or one per image to make; resized to the size that is made.
            class_labels: As in `DiTPipeline`.
            strength: Share of the steps to take, in (0, 1]; at 1 little of the image remains.
            **arguments: Other arguments of `DiTPipeline`; `latents` is the noise that is added.

        Raises:
            ValueError: As in `DiTPipeline`.
            FloatingPointError: As in `DiTPipeline`.
        """
        return super().__call__(class_labels, _source=SourceImage(image, strength), **arguments)

    @torch.no_grad()
    def invert(
        self,
        image: PipelineImageInput,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int = 100,
        **arguments: Any,
    ) -> Tensor:
        """Find the noise (B, C, H, W) from which DDIM makes an image again (Song et al. 2021, section 4.3).

        Args:
            image: One image, or one per label.
            class_labels: What the images show.
            num_inference_steps: Number of steps; the more, the smaller the error. Pass the same number to make the
                image again.
            **arguments: Other arguments of `DiTPipeline`; guided only if guidance_scale is given.

        Raises:
            ValueError: As in `DiTPipeline`, or if the model was trained by flow matching.
        """
        if self.config.prediction_type in FLOW_PREDICTIONS:
            name = type(self.scheduler).__name__
            raise ValueError(
                f"{name} samples a model of flow matching without betas: DDIM inverts models with betas only"
            )
        kept = (*BETA_FIELDS, "num_train_timesteps", "prediction_type")
        config = {name: self.scheduler.config.get(name) for name in kept}
        config["set_alpha_to_one"] = config["prediction_type"] != "sample"  # x_0 without noise says nothing of eps
        scheduler = DDIMInverseScheduler(**config, timestep_spacing="leading", clip_sample=False)
        inverse = DiTPipeline.from_pipe(self, scheduler=scheduler)
        inverse.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        model = self.transformer.config
        numbers = arguments.get("num_images_per_label", 1), arguments.get("num_images")
        labels = label_batch(class_labels, *numbers, model, self.config.id2label or {})
        size = latent_size(model, self.vae_scale_factor, arguments.get("height"), arguments.get("width"))
        shape = (len(labels), model.in_channels, *size)
        latents = self._encode_source(SourceImage(image, 1.0), shape).latents.expand(shape)  # (B, C, H, W)
        arguments = {"num_inference_steps": num_inference_steps, "guidance_scale": 1.0, **arguments}
        return inverse(class_labels, latents=latents, output_type="latent", **arguments).images


class DiTInpaintPipeline(DiTPipeline):
    """Inpainting: draw a masked part of an image anew; every other pixel stays what it was, to the byte.

    What is known is put back after each step (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, without resampling). The
    pipeline takes the parts of `DiTPipeline`; `DiTInpaintPipeline.from_pipe(pipeline)` shares them.
    """

    def __call__(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        strength: float = 1.0,
        **arguments: Any,
    ) -> ImagePipelineOutput | tuple:
        """Draw the masked part of images.

        Args:
            image: One image, or one per image to make; resized to the size that is made.
            mask_image: Mask, white (from 0.5 up) where something new is drawn; one, or one per image.
            class_labels: As in `DiTPipeline`.
            strength: Share of the steps to take, in (0, 1]; below 1 what was under the mask shines through.
            **arguments: Other arguments of `DiTPipeline`; with output_type="latent" nothing is composited.

        Raises:
            ValueError: As in `DiTPipeline`.
            FloatingPointError: As in `DiTPipeline`.
        """
        return super().__call__(class_labels, _source=SourceImage(image, strength, mask_image), **arguments)
