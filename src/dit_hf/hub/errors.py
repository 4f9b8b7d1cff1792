"""What goes wrong with the Hub, in one line with the remedy; and which of it is worth another try."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 4
MAX_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = 120.0  # without a byte
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that another try may not meet


class HubError(OSError):
    """The Hub could not be used; the message says why and what to do, in one line."""


# From the most special class to the most general: an error is explained by the first that fits.
REMEDIES: dict[type[Exception], str] = {
    LocalTokenNotFoundError: "there is no token: log in with `hf auth login`, or set HF_TOKEN",
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set: unset it, only what is in the cache can be used without the network",
    ConnectionError: "no connection: check the network, then run the same again, only what is missing is sent",
    HFValidationError: "this is no repository id: write it as `user/name`",
    GatedRepoError: "it is gated: ask for access on its page, and log in with `hf auth login`",
    RevisionNotFoundError: "it has no such revision: name a branch, tag or commit of it",
    RepositoryNotFoundError: "there is no such repository, or the token may not see it: check its name and the token",
}
REMEDIES_BY_STATUS: dict[int, str] = {
    401: "the token is not valid: log in again with `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for a payment: look at the account's settings",
    403: "the token has no right to do this: use one with write access to this repository (huggingface.co/settings)",
    412: "it was changed at the same time: run the same again",
    429: "the Hub asks for fewer requests: wait some minutes and run the same again, only what is missing is sent",
}


def status_of(error: Exception) -> int | None:
    """The status of the Hub's answer, or None where there was none."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def explain(error: Exception) -> str:
    """One line: what happened, and what to do."""
    status = status_of(error)
    special = next((text for cls, text in REMEDIES.items() if isinstance(error, cls)), None)
    if special is None and status is None:
        special = REMEDIES[ConnectionError]
    default = f"the Hub answered {status}: run the same again later, only what is missing is sent"
    return special or REMEDIES_BY_STATUS.get(status or 0, default)


@contextlib.contextmanager
def one_line_errors(repo_id: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one `HubError` that names the repository and the remedy."""
    _bound_waiting()
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, HFValidationError) as error:
        local = isinstance(error, OSError) and error.filename is not None  # a full disk, an unreadable file
        if local:
            raise
        raise HubError(f"{repo_id} at {constants.ENDPOINT}: {explain(error)}") from error


def retried(call: Callable[[], T], *, only: set[int] | None = None) -> T:
    """Call again, at most `TRIES` times, where the network or the Hub fails for a moment; waits as the Hub asks.

    Args:
        call: without arguments; calling it twice must do no more than once.
        only: statuses to retry, where a lost answer must not be; None for all passing ones and lost connections.

    Raises:
        HTTPError: the last error, when it does not pass or the Hub asks for more than a minute.
    """
    for attempt in range(1, TRIES):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except HTTPError as error:
            status = status_of(error)
            worth_it = status in (PASSING if only is None else only) or (status is None and only is None)
            wait = _seconds_to_wait(error, attempt)
            if not worth_it or wait > MAX_WAIT_SECONDS:
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
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if asked.isdecimal() else 2.0 ** (attempt - 1)
