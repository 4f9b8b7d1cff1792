"""The version of a data set: a commit of the Hub, or "files-", a hash of local files, and a hash of the class names.

A run records the version of its data, and a resumed run compares it. Local files of at most `HASHED_BYTES` together are
compared by their names and their whole content, larger data sets by the names and sizes of their files. A run may be
allowed to go on with other files, but never with other classes, whose rows the model does not have.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from ..files import sha256_of_file

COMMIT = re.compile(r"@([0-9a-f]{40})/")
WITH_CLASSES = re.compile(r"(?P<files>[0-9a-f]{40}|files-[0-9a-f]{40})-[0-9a-f]{8}")
LOCAL_PREFIX = "files-"
HASHED_BYTES = 256 * 2**20


def find_revision(files: Sequence[str], class_names: Sequence[str], contents: Sequence[str] = ()) -> str:
    """Return the commit of the Hub that all addresses name; otherwise hashes, such as "files-5f0c...-9a3e41c7".

    Args:
        files: Paths or addresses of the files of the data set.
        class_names: Names of the classes, in their order.
        contents: What tells a version of each file from another one. Default: as `local_contents`.
    """
    commits = {match[1] if (match := COMMIT.search(file)) else None for file in files}
    if len(commits) == 1 and (commit := commits.pop()):
        return commit
    versions = zip(short_names(files), contents or local_contents(files), strict=True)
    return f"{LOCAL_PREFIX}{_hash(f'{name} {content}' for name, content in versions)[:40]}-{_hash(class_names)[:8]}"


def with_choice(revision: str, names: Sequence[str], numbers: Mapping[int | str, int]) -> str:
    """Return a version of data that ends with a hash of the classes that the user has chosen or mapped.

    Args:
        revision: Version, as `find_revision` returns it.
        names: Names of the classes.
        numbers: Label in the data set -> class.
    """
    match = WITH_CLASSES.fullmatch(revision)
    chosen = [*names, *(f"{label!r} {number}" for label, number in numbers.items())]
    return f"{match['files'] if match else revision}-{_hash(chosen)[:8]}"


def commit_of(revision: str | None) -> str | None:
    """Return a version of data on the Hub without the hash that `with_choice` added; any other one as it is."""
    is_of_hub = revision is not None and not revision.startswith(LOCAL_PREFIX)
    match = WITH_CLASSES.fullmatch(revision) if revision and is_of_hub else None
    return match["files"] if match else revision


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def short_names(files: Sequence[str]) -> list[str]:
    """Return the paths of files below the folder that holds them all."""
    if not files:
        return []
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, root) for file in files]


def local_contents(files: Sequence[str]) -> list[str]:
    """Return a hash of each local file, or its size if all of them are larger than `HASHED_BYTES` together.

    The content of a remote file is unknown: its address alone counts. A missing file differs from an empty one.
    """
    sizes = [os.stat(file).st_size if "://" not in file and os.path.isfile(file) else -1 for file in files]
    if sum(sizes) > HASHED_BYTES:
        return [str(size) for size in sizes]
    return [sha256_of_file(file) if size >= 0 else "" for file, size in zip(files, sizes, strict=True)]
