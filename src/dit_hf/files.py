"""Files and folders that are either whole or not there: written under a hidden name, flushed to the disk, then renamed.

The hidden name of `weights.npz` is `.weights.npz.PROCESS.partial`; that of the folder `pipeline` is
`.pipeline.PROCESS.partial`. A process that is killed leaves such a name behind, and `remove_leftovers` deletes it.

Each operation on the disk is announced before it happens, so that a caller can watch a save:

    with watched(lambda operation, path: print(operation, path.name)):
        write_text(Path("status.json"), "{}")  # write, flush, rename, flush
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

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
