"""What goes wrong with the Hub, in one line with the remedy; and which of it is worth another try."""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

logger = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 4
MAX_WAIT_SECONDS = 60.0
LOAD_SECONDS = 30.0  # in which another try of a load begins: huggingface_hub tries some of its requests for 23 s
TIMEOUT_SECONDS = 120.0  # without a byte
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that another try may not meet


class HubError(OSError):
    """The Hub could not be used; the message says why and what to do, in one line."""


# An error, or what it came from, is explained by the first class that fits.
REMEDIES: dict[type[Exception], str] = {
    LocalTokenNotFoundError: "there is no token: log in with `hf auth login`, or set HF_TOKEN",
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set: unset it, only what is in the cache can be used without the network",
    HFValidationError: "this is no repository id: write it as `user/name`",
    GatedRepoError: "it is gated: ask for access on its page, and log in with `hf auth login`",
    RevisionNotFoundError: "it has no such revision: name a branch, tag or commit of it",
    RepositoryNotFoundError: "there is no such repository, or the token may not see it: check its name and the token",
    RemoteEntryNotFoundError: "it lacks a file that a pipeline has: look whether it is one",
}
NO_CONNECTION = "no connection: check the network, then run the same again, only what is missing is sent"
REMEDIES_BY_STATUS: dict[int, str] = {
    401: "the token is not valid: log in again with `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for a payment: look at the account's settings",
    403: "the token has no right to do this: use one with write access to this repository (huggingface.co/settings)",
    404: "there is no such repository or file: check its name",
    412: "it was changed at the same time: run the same again",
    429: "the Hub asks for fewer requests: wait some minutes and run the same again, only what is missing is sent",
}


SECRETS_OF_ADDRESSES = re.compile(r"(?<=://)[^/\s@]+@|(?<=\?)[^\s'\"]+=[^\s'\"]+")  # a password, a signature
WRITES_ADDRESSES = ("huggingface_hub.utils._http", "huggingface_hub.file_download")  # to the log


def _without_secrets(record: logging.LogRecord) -> bool:
    """A filter of a log that lets all pass."""
    record.msg, record.args = SECRETS_OF_ADDRESSES.sub("", record.getMessage()), ()
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: the libraries wrap what the Hub said."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: Exception) -> int | None:
    """The status of the Hub's answer, or None where there was none."""
    answers = (each.response.status_code for each in _chain(error) if isinstance(each, HfHubHTTPError))
    return next(answers, None)


def explain(error: Exception) -> str | None:
    """One line, what happened and what to do; None where the Hub has no part in it."""
    chain = list(_chain(error))
    for cls, text in REMEDIES.items():
        if any(isinstance(each, cls) for each in chain):
            return text
    status = status_of(error)
    if status is not None:
        default = f"the Hub answered {status}: run the same again later, only what is missing is sent"
        return REMEDIES_BY_STATUS.get(status, default)
    return NO_CONNECTION if any(isinstance(each, HTTPError) for each in chain) else None


@contextlib.contextmanager
def one_line_errors(repo_id: str, hint: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub into one `HubError` that names the repository and the remedy.

    It logs on the way, and from now on without the signatures of addresses.

    Args:
        repo_id: what the Hub is asked for.
        hint: ends the message.
    """
    _bound_waiting()
    for name in WRITES_ADDRESSES:
        logging.getLogger(name).addFilter(_without_secrets)
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, HFValidationError, RuntimeError) as error:  # the last from a lost upload
        explanation = explain(error)
        if explanation is None:  # a full disk, an unreadable file
            raise
        hub = SECRETS_OF_ADDRESSES.sub("", constants.ENDPOINT)
        raise HubError(f"{repo_id} at {hub}: {explanation}{hint}") from error


def retried(call: Callable[[], T], *, only: set[int] | None = None, seconds: float = math.inf) -> T:
    """Call again, at most `TRIES` times, where the network or the Hub fails for a moment; waits as the Hub asks.

    Args:
        call: without arguments; calling it twice must do no more than once.
        only: statuses to retry, where a lost answer must not be; None for all passing ones and lost connections.
        seconds: after which no other try begins, where the call itself tries for long.

    Raises:
        HTTPError: the last error, when it does not pass or the Hub asks for more than a minute.
    """
    started = time.monotonic()
    for attempt in range(1, TRIES):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except (HTTPError, OSError) as error:
            status = status_of(error)
            lost = explain(error) == NO_CONNECTION
            worth_it = status in (PASSING if only is None else only) or (lost and only is None)
            wait = _seconds_to_wait(error, attempt)
            if not worth_it or wait > MAX_WAIT_SECONDS or time.monotonic() - started > seconds:
                raise
            logger.warning(f"the Hub: {status or type(error).__name__}; try {attempt + 1} of {TRIES} in {wait:g} s")
            time.sleep(wait)
            _bound_waiting()
    return call()


def _bound_waiting() -> None:
    """End requests that nothing comes back from; huggingface_hub's client would wait for ever."""
    session = get_session()
    if session.timeout.read is None:
        session.timeout = TIMEOUT_SECONDS


def _seconds_to_wait(error: Exception, attempt: int) -> float:
    answers = (each.response for each in _chain(error) if isinstance(each, HfHubHTTPError))
    asked = next((answer.headers.get("Retry-After", "") for answer in answers), "")
    return float(asked) if asked.isdecimal() else 2.0 ** (attempt - 1)


def load_from_hub(
    repo_id: str,
    load: Callable[..., T],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> T:
    """Load one commit from the Hub, with passing errors retried and others in one line.

    The Hub is asked for the commit first: a branch may move while its files are fetched, and diffusers takes any error
    there for a lost network, and would go on with what of it lies in the cache.

    Args:
        repo_id: what is loaded; no folder has this name.
        load: takes `revision`; what it fetched before lies in the cache when it is called again.
        revision: a branch, tag or commit; None for `main`.
        cache_dir: as in huggingface_hub.
        local_files_only: whether the network may not be asked.
        token: for a private repository.

    Raises:
        HubError: if the Hub cannot be used, and the cache does not hold all.
    """
    unreachable = commit = None
    with one_line_errors(repo_id, hint=". If a folder was meant: there is none of that name here"):
        if not (local_files_only or constants.HF_HUB_OFFLINE):
            api = HfApi(token=token)
            try:
                commit = retried(lambda: api.model_info(repo_id, revision=revision), only=PASSING).sha
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
    if commit and commit != revision:  # as huggingface_hub notes where it resolves a branch, for the next time offline
        folder = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
        reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
    return loaded
