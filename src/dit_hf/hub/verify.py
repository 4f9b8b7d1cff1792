"""Whether downloaded files are those that the Hub has: their hashes against the Hub's, as clients check sizes only."""

import hashlib
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from .errors import HubError, one_line_errors, retried


def verify_snapshot(
    folder: str | Path, repo_id: str, revision: str | None = None, *, token: str | None = None
) -> list[str]:
    """Compare a downloaded folder with the Hub's tree.

    Args:
        folder: what `snapshot_download` or `DiTPipeline.download` returned; it may lack files of the repository.
        repo_id: "user/name".
        revision: the branch, tag or commit that was downloaded.
        token: for a private repository.

    Returns:
        The names of the files that were compared, every one of which is right.

    Raises:
        HubError: if the Hub cannot be asked, or a file differs or was never in the repository, naming it.
    """
    api = HfApi(token=token)
    with one_line_errors(repo_id):
        listing = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)))
    there = {entry.path: entry for entry in listing if isinstance(entry, RepoFile)}
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    here = {name: path for name, path in paths.items() if not name.startswith(".cache/")}  # of `local_dir` downloads
    for name, path in here.items():
        if name not in there:
            raise HubError(f"{path} is not in {repo_id}: delete the folder and download it again")
        if not _is_same(path, there[name]):
            raise HubError(f"{path} does not have the hash that {repo_id} says: delete it and download it again")
    return list(here)


def _is_same(path: Path, entry: RepoFile) -> bool:
    """Large files are known by their SHA-256, small ones by git's hash."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == entry.blob_id
