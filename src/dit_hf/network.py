"""Try again what the network or the Hub failed to do for a moment.

An error passes if the connection broke, or if the server answered with one of the statuses in `PASSING`. Everything
else, such as a missing file or a token without rights, fails at once: another try would fail in the same way.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from huggingface_hub import get_session, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from .redaction import without_secrets

logger = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 4
LONGEST_PAUSE = 60.0  # seconds between two tries
LONGEST_ASKED = 300.0  # seconds that a server may ask for: the Hub counts requests in windows of five minutes
LONGEST_SILENCE = 120.0  # seconds in which a server may send nothing
PASSING = frozenset({408, 429, 500, 502, 503, 504})  # statuses of an answer that may be gone at the next try


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it came from: libraries wrap what the server answered."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """Return the status of the server's answer, such as 404, or None if there was no answer."""
    return next((each.response.status_code for each in _answers(error)), None)


def is_lost_connection(error: BaseException) -> bool:
    """Whether no answer came because the connection could not be made, broke or timed out."""
    kinds = (HTTPError, ConnectionError, TimeoutError)
    is_lost = any(isinstance(each, kinds) for each in causes(error))
    return is_lost and status_of(error) is None and not _is_offline(error)


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed."""
    return is_lost_connection(error) or (status_of(error) in PASSING and not _is_offline(error))


def reason_of(error: BaseException) -> str:
    """Return the class and message of an error as one line without the secrets of addresses."""
    return without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")


def retried(
    call: Callable[[], T],
    *,
    what: str = "the Hub",
    tries: int = TRIES,
    statuses: Collection[int] | None = None,
    seconds: float = math.inf,
) -> T:
    """Call a function again if it fails with an error that passes.

    The pause before the next try is what the server asks for in `Retry-After`, else 1, 2, 4, ... seconds, at most
    `LONGEST_PAUSE`.

    Args:
        call: Function without arguments. Calling it twice must have the same effect as calling it once.
        what: Name of what is fetched or sent, for the log.
        tries: Number of calls before the error is raised.
        statuses: Statuses of an answer that are tried again. None tries `PASSING` and lost connections. Name statuses
            if a lost connection must not be tried again, because the first call may have succeeded without an answer.
        seconds: Time after which no further try begins, for a call that itself tries several times.

    Raises:
        HTTPError: If the error does not pass, if `tries` calls failed, or if the server asks for a longer pause than
            `LONGEST_ASKED`. An `OSError` of the call is raised as it is.
    """
    started = time.monotonic()
    for attempt in range(1, tries):
        try:
            return call()
        except (HTTPError, OSError) as error:
            is_worth_it = is_passing(error) if statuses is None else status_of(error) in statuses
            pause = _pause_before_next(error, attempt)
            if not is_worth_it or pause > LONGEST_ASKED or time.monotonic() - started > seconds:
                raise
            logger.warning(f"{what}: {reason_of(error)}; try {attempt + 1} of {tries} in {pause:g} s")
            time.sleep(pause)
            end_silent_requests()
    return call()


def end_silent_requests() -> None:
    """Let a request fail after `LONGEST_SILENCE`; by itself the client of huggingface_hub would wait for ever."""
    session = get_session()
    if session.timeout.read is None:
        session.timeout = LONGEST_SILENCE


def _answers(error: BaseException) -> Iterator[HfHubHTTPError]:
    return (each for each in causes(error) if isinstance(each, HfHubHTTPError) and each.response is not None)


def _is_offline(error: BaseException) -> bool:
    return is_offline_mode() or any(isinstance(each, OfflineModeIsEnabled) for each in causes(error))


def _pause_before_next(error: BaseException, attempt: int) -> float:
    asked = next((each.response.headers.get("Retry-After", "") for each in _answers(error)), "")
    return float(asked) if asked.isdecimal() else min(2.0 ** (attempt - 1), LONGEST_PAUSE)
