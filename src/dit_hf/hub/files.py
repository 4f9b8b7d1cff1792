"""Files that a push may send: those of an allow-list, if they hold no secret and no path of this machine.

The folder of a pipeline holds weights, configurations, a card, pictures and this project's code. Any other file is
there by mistake. It is refused and not left out, so that nobody believes that it was sent.
"""

from pathlib import Path

from ..redaction import find_secret

SENT_SUFFIXES = {".safetensors", ".json", ".md", ".png", ".txt"}
# Code of this project beside the weights. Folders that version 0.1 saved hold configuration_dit.py as well.
SENT_CODE = {
    "pipeline_dit.py",
    "modeling_dit.py",
    "configuration_dit.py",
    "modular_dit.py",
    "transformer/modeling_dit.py",
}

OLDER_CODE = ("configuration_dit.py", "transformer/configuration_dit.py")  # of version 0.1.0


def sent_files(folder: Path) -> dict[str, Path]:
    """Return the files that a push of a folder sends, by their names in the repository.

    Args:
        folder: Folder of a pipeline or of an adapter.

    Raises:
        ValueError: If the folder holds neither, or if a file does not belong to a pipeline, is a link, or holds a
            secret.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    if not files.keys() & {"model_index.json", "modular_model_index.json", "adapter_config.json"}:
        raise ValueError(
            f"{folder} has no model_index.json: pass a folder that DiTPipeline.save_pretrained wrote, or an adapter's"
        )
    for name, path in files.items():
        if path.is_symlink() or not (path.suffix in SENT_SUFFIXES or name in SENT_CODE):
            raise ValueError(
                f"{name} is not pushed: a repository gets {', '.join(sorted(SENT_SUFFIXES))} and the code of "
                f"dit_hf. Move it out of {folder}"
            )
        secret = find_secret(_read_text_part(path))
        if secret:
            raise ValueError(f"{name} holds {secret}: take it out, nothing was pushed")
    return files


def _read_text_part(path: Path) -> bytes:
    """Read the part of a file that people write: of weights the header, which holds the metadata."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 100 * 2**20))
