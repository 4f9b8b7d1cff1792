"""Errors of the Hub in one line: what happened, and what to do about it."""

import contextlib
import logging
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..network import causes, end_silent_requests, is_lost_connection, status_of
from ..redaction import without_secrets


class HubError(OSError):
    """The Hub could not be used; the message says why and what to do, in one line."""


# Class of an error -> what happened and what to do. The first class that fits the error or one of its causes is taken.
REMEDIES: dict[type[Exception], str] = {
    LocalTokenNotFoundError: "there is no token: log in with `hf auth login`, or set HF_TOKEN",
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, so only cached files can be used: unset HF_HUB_OFFLINE",
    HFValidationError: "this is no repository id: write it as `user/name`",
    GatedRepoError: "the repository is gated: ask for access on its page, and log in with `hf auth login`",
    RevisionNotFoundError: "the repository has no such revision: name a branch, tag or commit of it",
    RepositoryNotFoundError: "there is no such repository, or the token may not see it: check its name and the token",
    RemoteEntryNotFoundError: "the repository lacks a file that a pipeline has: check that it holds a pipeline",
}
NO_CONNECTION = "no connection: check the network, then run the same command again; what arrived is not sent again"
REMEDIES_BY_STATUS: dict[int, str] = {
    401: "the token is not valid: log in again with `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for a payment: look at the account's settings",
    403: "the token may not do this: use a token with write access to this repository (huggingface.co/settings)",
    404: "there is no such repository or file: check its name",
    412: "the repository was changed at the same time: run the same command again",
    429: "the Hub asks for fewer requests: wait some minutes, then run the same command again",
}
LOGS_WITH_ADDRESSES = ("huggingface_hub.utils._http", "huggingface_hub.file_download")


def explain(error: Exception) -> str | None:
    """Return what happened and what to do, in one line; None if the error does not come from the Hub."""
    chain = list(causes(error))
    for kind, remedy in REMEDIES.items():
        if any(isinstance(each, kind) for each in chain):
            return remedy
    status = status_of(error)
    if status is not None:
        default = f"the Hub answered {status}: run the same command again later; what arrived is not sent again"
        return REMEDIES_BY_STATUS.get(status, default)
    return NO_CONNECTION if is_lost_connection(error) else None


@contextlib.contextmanager
def one_line_errors(repo_id: str, hint: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub into one `HubError` that names the repository and the remedy.

    From the first use on, huggingface_hub's own log lines are written without the signatures of addresses.

    Args:
        repo_id: Repository that the Hub is asked for.
        hint: Text at the end of the message.

    Raises:
        HubError: If the Hub cannot be used. Other errors, such as a full disk, are raised as they are.
    """
    end_silent_requests()
    for name in LOGS_WITH_ADDRESSES:
        logging.getLogger(name).addFilter(_redact)
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, HFValidationError, RuntimeError) as error:  # RuntimeError: an upload was lost
        explanation = explain(error)
        if explanation is None:
            raise
        raise HubError(f"{repo_id} at {without_secrets(constants.ENDPOINT)}: {explanation}{hint}") from error


def _redact(record: logging.LogRecord) -> bool:
    """Take secrets out of a log record; a filter that lets every record pass."""
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True
