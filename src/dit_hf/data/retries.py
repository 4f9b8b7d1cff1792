"""Reading again what the network interrupted; what stays broken is named with its shard."""

from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HTTPError

from .. import network

T = TypeVar("T")
TRIES = 8


class SourceError(OSError):
    """The data cannot be read; the message names the shard and says why."""


def retried(read: Callable[[], T], what: str) -> T:
    """Read again, with growing pauses, while the network or the Hub fails for a moment.

    Args:
        read: Function without arguments that reads the same when it is called again.
        what: Name of what is read, for messages.

    Raises:
        SourceError: If the data cannot be read, after `TRIES` tries if another could help.
    """
    try:
        return network.retried(read, what=what, tries=TRIES)
    except SourceError:
        raise
    except (HTTPError, OSError) as error:
        tries = f" after {TRIES} tries" if network.is_passing(error) else ""
        raise SourceError(f"{what} cannot be read{tries}: {network.reason_of(error)}") from error
