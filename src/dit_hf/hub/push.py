"""Pushing a pipeline to the Hub: private by default, checked first, in one commit, and only what changed."""

import sys
import tempfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.utils import validate_repo_id

from ..cards.metadata import check_license
from ..cards.page import CARD, with_repository
from ..network import retried
from ..weight_files import refuse_adapters, superseded
from .card import check_card, choose_card
from .errors import HubError, one_line_errors
from .files import OLDER_CODE, sent_files


def check_push(repo_id: str, *, private: bool = True, token: str | None = None, is_space: bool = False) -> str:
    """Find out whether a push will be allowed, by creating the repository if there is none yet.

    Args:
        repo_id: Repository "user/name", or a name in one's own account.
        private: Whether the repository must be private.
        token: Token with write access; None takes the token of `hf auth login` or HF_TOKEN.
        is_space: Whether the repository is a Space with Gradio, and not a model.

    Returns:
        The complete id, "user/name".

    Raises:
        HubError: If the id is none, or if there is no network, no token or no right to write; in one line, with the
            remedy.
        ValueError: If the repository is public and `private` is not False.
    """
    api, kind = HfApi(token=token), "space" if is_space else "model"
    sdk = "gradio" if is_space else None
    with one_line_errors(repo_id):
        validate_repo_id(repo_id)
        account = retried(api.whoami)
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(
                f"{repo_id}: the token of {account['name']} can only read: make one with write "
                "access in the account's settings, then `hf auth login`, or set HF_TOKEN"
            )
        options: dict[str, Any] = {"private": private, "exist_ok": True, "repo_type": kind, "space_sdk": sdk}
        made = retried(lambda: api.create_repo(repo_id, **options))
        repo_id = made.repo_id
        retried(lambda: api.auth_check(repo_id, repo_type=kind, write=True))
        is_private = retried(lambda: api.repo_info(repo_id, repo_type=kind)).private
    if private and not is_private:
        raise ValueError(f"{repo_id} is public: pass private=False, or make it private in its settings")
    return repo_id


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> CommitInfo:
    """Push a saved pipeline or adapter.

    All files arrive in one commit, so that a reader never sees half of them. The same commit deletes the weights that
    the new ones supersede, such as a single file before shards, and code that no saved folder has any more; other files
    of the repository stay. Pushing the folder again sends only what changed, also after a push that was cut.

    Args:
        folder: Folder that `DiTPipeline.save_pretrained` wrote, perhaps with a card and pictures; or an adapter's.
        repo_id: Repository "user/name", which is created if it is missing.
        private: Whether the repository must be private; False for a repository that everybody sees.
        revision: Branch, which is made from `main` if it is missing; None for `main`.
        commit_message: First line of the commit.
        create_pr: Whether to open a pull request instead of committing.
        token: Token with write access, as in `check_push`.

    Raises:
        HubError: As in `check_push`.
        ValueError: If the folder holds a file that is never pushed, if the Hub refuses the card, or as in `check_push`.
    """
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise ValueError(f"create_pr=True with revision={revision!r}: a pull request goes to main, pass one of them")
    files = sent_files(Path(folder))
    repo_id = check_push(repo_id, private=private, token=token)
    if CARD in files:
        check_card(files[CARD].read_text(encoding="utf-8"), repo_id)
    api = HfApi(token=token)
    with one_line_errors(repo_id):
        if revision and revision != constants.DEFAULT_REVISION and not revision.startswith("refs/"):
            retried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        additions = [CommitOperationAdd(name, _content(name, path, repo_id)) for name, path in files.items()]
        # tries again by itself, and leaves out what the Hub already has
        api.preupload_lfs_files(repo_id, additions, revision=revision, create_pr=create_pr)
        commit = retried(
            lambda: api.create_commit(
                repo_id,
                [*additions, *_deletions(api, repo_id, revision, files)],
                commit_message=commit_message or "Upload DiTPipeline",
                revision=revision,
                create_pr=create_pr,
            ),
            statuses={429, 503} if create_pr else None,  # a lost answer must not open a second pull request
        )
        visibility = "private" if retried(lambda: api.model_info(repo_id)).private else "PUBLIC"
    print(f"pushed to {commit.pr_url or commit.commit_url} ({visibility})", file=sys.stderr)  # noqa: T201
    return commit


def _deletions(api: HfApi, repo_id: str, revision: str | None, files: Collection[str]) -> list[CommitOperationDelete]:
    """Return deletions of the files in a repository that the pushed ones supersede."""
    present = api.list_repo_files(repo_id, revision=revision)
    outdated = [str(path) for path in superseded(map(PurePosixPath, present), map(PurePosixPath, files))]
    if "model_index.json" in files:
        outdated += [name for name in OLDER_CODE if name in present and name not in files]
    return [CommitOperationDelete(name) for name in outdated]


def push_pipeline(
    pipeline: DiffusionPipeline,
    repo_id: str,
    *,
    license: str | None = None,
    token: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Save a pipeline and push it, with the card that `choose_card` returns.

    Args:
        pipeline: Pipeline to push.
        repo_id: Repository, as in `push_folder`.
        license: Licence of the weights, as the Hub calls it; None keeps the licence that the card states.
        token: Token, as in `push_folder`.
        **options: Other arguments of `push_folder`.

    Raises:
        HubError: As in `push_folder`.
        ValueError: If the licence is none of the Hub's, or as in `push_folder`.
    """
    check_license(license)
    refuse_adapters(pipeline.transformer, "pushing")
    full_id = check_push(repo_id, private=options.get("private", True), token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pipeline")
        pipeline.save_pretrained(folder)
        published = _read_published_card(full_id, options.get("revision"), token)
        origin = Path(pipeline.name_or_path or "")
        card = choose_card(pipeline, folder, published, license, full_id)
        (folder / CARD).write_text(card.text, encoding="utf-8")
        if card.is_of_origin:
            _copy_pictures(origin, folder)
        return push_folder(folder, full_id, token=token, **options)


def _read_published_card(repo_id: str, revision: str | None, token: str | None) -> str | None:
    """Return the card that is on the Hub; None if there is none."""
    api = HfApi(token=token)
    with one_line_errors(repo_id), tempfile.TemporaryDirectory() as temporary:
        if not retried(lambda: api.file_exists(repo_id, CARD, revision=revision)):
            return None
        file = retried(lambda: api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=temporary))
        return Path(file).read_text(encoding="utf-8")


def _copy_pictures(origin: Path, folder: Path) -> None:
    for picture in [*origin.glob("*.png"), *origin.glob("samples/*.png")]:
        copy = folder / picture.relative_to(origin)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(picture.read_bytes())


def _content(name: str, path: Path, repo_id: str) -> str | bytes:
    """Return a path to send; of the card its text, in which the snippets load the repository."""
    if name != CARD:
        return str(path)
    return with_repository(path.read_text(encoding="utf-8"), repo_id).encode()
