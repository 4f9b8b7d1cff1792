"""Files of weights in a folder: saved as a whole, and never in two forms of which one is outdated.

Weights have one of two forms: a single file, `model.safetensors`, or shards, `model-00001-of-00002.safetensors` and so
on, listed in `model.safetensors.index.json`. If a folder holds both, transformers reads the single file and diffusers
the shards, whichever is newer. A variant is a name between the two: `model.fp16.safetensors`. diffusers' names begin
with `diffusion_pytorch_model`, older ones of transformers with `pytorch_model`.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from .files import flush, rename

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
