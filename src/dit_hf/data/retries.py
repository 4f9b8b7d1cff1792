"""Reading again what the network interrupted; what stays broken is named with its shard."""

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError

logger = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 8
MAX_WAIT_SECONDS = 60.0
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that another try may not meet
SIGNATURE = re.compile(r"(?<=\?)[^\s'\"]+=[^\s'\"]+")  # of an address: whoever reads it may read the data


class SourceError(OSError):
    """The data cannot be read; the message names the shard and says why."""


def retried(read: Callable[[], T], what: str) -> T:
    """Call again, with growing pauses, while the network or the Hub fails for a moment.

    Args:
        read: without arguments; reads the same again when called again.
        what: is read, for messages.

    Raises:
        SourceError: if it does not pass, after `TRIES` tries where another could help.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except (HTTPError, OSError) as error:
            if isinstance(error, SourceError):
                raise
            passing = isinstance(error, HTTPError | ConnectionError | TimeoutError)
            if isinstance(error, HfHubHTTPError):
                passing = error.response is None or error.response.status_code in PASSING
            passing = passing and not is_offline_mode()
            reason = SIGNATURE.sub("", f"{type(error).__name__}: {' '.join(str(error).split())}")
            if not passing or attempt == TRIES:
                tries = f" after {attempt} tries" if passing else ""
                raise SourceError(f"{what} cannot be read{tries}: {reason}") from error
            wait = min(2.0 ** (attempt - 1), MAX_WAIT_SECONDS)
            logger.warning(f"{what}: {reason}; try {attempt + 1} of {TRIES} in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("unreachable")
