"""The version of a data set: a commit of the Hub, or a hash of local files."""

import hashlib
import os
import re
from collections.abc import Sequence

COMMIT = re.compile(r"@([0-9a-f]{40})/")
LOCAL_PREFIX = "files-"


def find_revision(files: Sequence[str], contents: Sequence[str]) -> str:
    """Return the commit of the Hub that all addresses name; otherwise "files-" and a hash.

    Args:
        files: Paths or addresses of the files of the data set.
        contents: What else tells a version of each file from another one; hashed with the path below the common folder.
    """
    commits = {match[1] if (match := COMMIT.search(file)) else None for file in files}
    if len(commits) == 1 and (commit := commits.pop()):
        return commit
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    lines = [f"{os.path.relpath(file, root)} {content}" for file, content in zip(files, contents, strict=True)]
    return f"{LOCAL_PREFIX}{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:40]}"
