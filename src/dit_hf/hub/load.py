"""Loading one commit of a repository from the Hub, however often the network fails for a moment."""

import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.file_download import repo_folder_name

from ..files import write_text
from ..network import PASSING, retried, status_of
from ..places import describe_missing
from ..weight_files import refuse_two_forms_among
from .errors import one_line_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")
LOAD_SECONDS = 30.0  # after which no other try begins: huggingface_hub itself repeats some of its requests for 23 s


def load_from_hub(
    repo_id: str,
    load: Callable[..., T],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    variant: str | None = None,
) -> T:
    """Load one commit of a repository.

    The Hub is asked for the commit first, for two reasons: a branch may move while its files are fetched, and diffusers
    takes any error at that point for a lost network and would go on with whatever the cache holds.

    Args:
        repo_id: Repository, "user/name".
        load: Function that loads the pipeline; it takes `revision`, and finds in the cache what it fetched before.
        revision: Branch, tag or commit; None for `main`.
        cache_dir: Folder of the cache, as in huggingface_hub.
        local_files_only: Whether to use the cache alone, without the network.
        token: Token for a private repository.
        variant: Variant of the weights that is loaded.

    Raises:
        HubError: If the Hub cannot be used and the cache lacks a file.
        ValueError: If the repository holds weights twice, one of which is outdated.
    """
    unreachable = commit = None
    with one_line_errors(repo_id, hint=f". If you meant a folder: {describe_missing(repo_id)}"):
        if not (local_files_only or constants.HF_HUB_OFFLINE):
            api = HfApi(token=token)
            try:
                info = retried(lambda: api.model_info(repo_id, revision=revision), statuses=PASSING)
                commit = info.sha
                files = [PurePosixPath(file.rfilename) for file in info.siblings or ()]
                in_parts = [file for file in files if len(file.parts) == 2]
                refuse_two_forms_among(in_parts, f"{repo_id} at {commit}", variant)
            except (HTTPError, OSError) as error:
                if status_of(error) not in (None, *PASSING):
                    raise
                unreachable = error
        try:
            loaded = retried(lambda: load(revision=commit or revision), seconds=LOAD_SECONDS)
        except (OSError, ValueError):
            if unreachable is None:
                raise
            raise unreachable from None
    if commit and commit != revision:
        cache = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
        _note_commit(cache / "refs" / (revision or constants.DEFAULT_REVISION), commit)
    return loaded


def _note_commit(reference: Path, commit: str) -> None:
    """Note which commit a branch is at, as huggingface_hub does, so that the branch's name is known offline.

    The pipeline is loaded by then, so a cache that cannot be written to is no error.
    """
    try:
        if reference.is_file() and reference.read_text() == commit:
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_text(reference, commit)
    except OSError as error:
        logger.info(f"the cache keeps no note that {reference.name} is commit {commit}: {error}")
