"""What a push may send: an allow-list of files, none of which holds a secret or a path of this machine.

A pipeline's folder has weights, configurations, a card, pictures and this project's code; anything else in it came
there by mistake, and is refused rather than left out, so that nobody believes it was sent.
"""

import re
from pathlib import Path

from huggingface_hub import get_token

SENT_SUFFIXES = {".safetensors", ".json", ".md", ".png", ".txt"}
SENT_CODE = {"pipeline_dit.py", "modeling_dit.py", "configuration_dit.py", "transformer/modeling_dit.py"}

# Names of secrets, and what they look like in a file.
SECRETS: dict[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})"),
    "a key of an API": re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}"),
    "an AWS key": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


def find_secret(content: bytes) -> str | None:
    """What a content gives away of its author or machine: a secret, the token in use, or the home folder; or None."""
    for kind, pattern in SECRETS.items():
        if pattern.search(content):
            return kind
    token = get_token()
    if token and token.encode() in content:
        return "the token in use"
    home = Path.home()
    if home != Path(home.anchor) and f"{home}/".encode() in content:
        return "a path of this machine"
    return None


def sent_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that a push sends, by their names in the repository.

    Raises:
        ValueError: if a file is not of those that a pipeline has, is a link, or gives a secret away.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    if not files.keys() & {"model_index.json", "adapter_config.json"}:
        raise ValueError(
            f"{folder} has no model_index.json: pass a folder that DiTPipeline.save_pretrained wrote, or an adapter's"
        )
    for name, path in files.items():
        if path.is_symlink() or not (path.suffix in SENT_SUFFIXES or name in SENT_CODE):
            raise ValueError(
                f"{name} is not pushed: a repository gets {', '.join(sorted(SENT_SUFFIXES))} and the code of "
                f"dit_hf. Move it out of {folder}"
            )
        secret = find_secret(_scanned(path))
        if secret:
            raise ValueError(f"{name} holds {secret}: take it out, nothing was pushed")
    return files


def _scanned(path: Path) -> bytes:
    """The part of a file that people write: of weights the header, where metadata stands."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 100 * 2**20))
