"""Files that are either whole or not there: each is written under a hidden name, flushed to the disk, then renamed.

The hidden name of `weights.npz` is `.weights.npz.PROCESS.partial`. A process that is killed leaves such a file behind;
`remove_leftovers` deletes it.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"  # suffix of a file that is not whole yet


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(partial: Path, path: Path) -> None:
    """Flush a file and give it its final name, in one step that a kill cannot cut in two.

    Args:
        partial: The file under its hidden name.
        path: The final name; a file of this name is replaced.
    """
    flush(partial)
    os.replace(partial, path)
    flush(path.parent)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a hidden name to write a file to, and give the file its final name if the block ends without an error.

    Args:
        path: The final name; its folder exists.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the hidden files that killed processes left in a folder.

    Args:
        folder: The folder; it need not exist.
        name: The final name of the files, as a pattern.
    """
    for path in folder.glob(f".{name}.*{PARTIAL}"):
        path.unlink(missing_ok=True)


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
