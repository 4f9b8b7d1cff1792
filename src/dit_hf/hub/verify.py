"""Checking that downloaded files are those that the Hub has.

Clients of the Hub compare sizes only; here the hash of every file is compared with the hash that the Hub names.
"""

import hashlib
import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.hf_api import RepoFile

from ..files import sha256_of_file
from ..network import retried
from .errors import HubError, one_line_errors

logger = logging.getLogger(__name__)

GIT_HASH, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")  # of small files, and of large ones


def check_cached(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    verify: bool = True,
) -> str | None:
    """Check a pipeline in the cache, also without the network: the cache names each content by the Hub's hash of it.

    Args:
        repo_id: Repository, "user/name".
        revision: Branch, tag or commit that was loaded.
        cache_dir: Folder of the cache, as in huggingface_hub.
        local_files_only: Whether the cache was used alone; the commit that was found there is logged then.
        token: Token for a private repository.
        verify: Whether to compare the hashes.

    Returns:
        The commit in the cache, or None if the pipeline was not loaded through the cache.

    Raises:
        HubError: If a file does not have its hash; the message names the file.
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
    paths = {path: path.resolve() for path in sorted(folder.rglob("*")) if path.is_file()}
    if not all(GIT_HASH.fullmatch(blob.name) or SHA256.fullmatch(blob.name) for blob in paths.values()):
        # a cache without links, as on Windows
        if is_offline:
            logger.warning(f"{repo_id}: this cache has no links, so nothing is compared without the network")
        else:
            verify_snapshot(folder, repo_id, folder.name, token=token)
        return folder.name
    for path, blob in paths.items():
        if (sha256_of_file(blob) if SHA256.fullmatch(blob.name) else _git_hash(blob)) != blob.name:
            name = path.relative_to(folder).as_posix()
            raise HubError(f"{name} of {repo_id} is damaged in the cache: delete {blob} and load it again")
    return folder.name


def verify_snapshot(
    folder: str | Path, repo_id: str, revision: str | None = None, *, token: str | None = None
) -> list[str]:
    """Compare a downloaded folder with the Hub's list of files.

    Args:
        folder: Folder that `snapshot_download` or `DiTPipeline.download` returned. It may lack files of the repository.
        repo_id: Repository, "user/name".
        revision: Branch, tag or commit that was downloaded.
        token: Token for a private repository.

    Returns:
        The names of the files that were compared, all of which have the right hash.

    Raises:
        HubError: If the Hub cannot be asked, or if a file differs or was never in the repository; the message names the
            file.
    """
    api = HfApi(token=token)
    with one_line_errors(repo_id):
        listing = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)))
    entries = {entry.path: entry for entry in listing if isinstance(entry, RepoFile)}
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    compared = {name: path for name, path in paths.items() if not name.startswith(".cache/")}  # notes of the client
    for name, path in compared.items():
        if name not in entries:
            raise HubError(f"{path} is not in {repo_id}: delete the folder and download it again")
        if not _is_same(path, entries[name]):
            raise HubError(f"{path} does not have the hash that {repo_id} says: delete it and download it again")
    return list(compared)


def _is_same(path: Path, entry: RepoFile) -> bool:
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return sha256_of_file(path) == entry.lfs.sha256
    return _git_hash(path) == entry.blob_id


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
