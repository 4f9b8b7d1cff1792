"""Printing while the terminal may close, or the program at the other end of a pipe may end: the training goes on."""

import sys
from typing import Any


class LastingStream:
    """A stream whose writes are dropped if they fail; everything else is the stream's own.

    Without it, a progress bar raises an error when `accelerate launch ... | tee log` loses its `tee`.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):  # ValueError: the stream is closed
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlast_terminal() -> None:
    """Let this process print through lasting streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, LastingStream):
            setattr(sys, name, LastingStream(stream))
