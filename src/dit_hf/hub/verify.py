"""Whether downloaded files are those that the Hub has: their hashes against the Hub's, as clients check sizes only."""

import hashlib
import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.hf_api import RepoFile

from .errors import HubError, one_line_errors, retried

logger = logging.getLogger(__name__)

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of a large one


def check_cached(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    verify: bool = True,
) -> str | None:
    """Check a pipeline in the cache, offline too: there, a file's content is named by the hash that the Hub gave.

    Args:
        repo_id: "user/name".
        revision: the branch, tag or commit that was loaded.
        cache_dir: as in huggingface_hub.
        local_files_only: whether the network was not asked; which commit was used is logged then.
        token: for a private repository.
        verify: whether to compare the hashes.

    Returns:
        The commit that lies in the cache, or None where it was loaded past the cache.

    Raises:
        HubError: if a file does not have its hash, naming it.
    """
    index = try_to_load_from_cache(repo_id, "model_index.json", cache_dir=cache_dir, revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    is_offline = local_files_only or constants.HF_HUB_OFFLINE
    if is_offline:
        logger.warning(f"{repo_id}: the network was not asked, this is commit {folder.name} of the cache")
    if not verify:
        return folder.name
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    has_hashes = all(HASH.fullmatch(path.resolve().name) for path in paths)
    if not has_hashes:  # a cache without links, as on Windows
        if is_offline:
            logger.warning(f"{repo_id}: this cache has no links, so nothing is compared without the network")
        else:
            verify_snapshot(folder, repo_id, folder.name, token=token)
        return folder.name
    for path in paths:
        content = path.resolve()
        if _hash(content, is_large=len(content.name) == 64) != content.name:
            name = path.relative_to(folder).as_posix()
            raise HubError(f"{name} of {repo_id} is damaged in the cache: delete {content} and load it again")
    return folder.name


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
    expected = entry.blob_id if entry.lfs is None else entry.lfs.sha256
    return _hash(path, is_large=entry.lfs is not None) == expected


def _hash(path: Path, is_large: bool) -> str:
    if is_large:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
