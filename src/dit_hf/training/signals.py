"""Being asked to stop: SIGTERM and SIGUSR1, as schedulers send them before they take a machine away.

A signal sets a flag and nothing else, so that it does no harm at any moment, nor does a second one. Every loop looks at
the flag; the run saves a checkpoint at the next step's boundary and ends with `EXIT_CODE`.
"""

import ctypes
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 128 + signal.SIGTERM  # 143, what shells report for SIGTERM
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of Linux' prctl


class Preempted(Exception):
    """The run was asked to stop, and has saved what it had."""


class StopRequest:
    """True once a signal has come; a context manager that listens while it is open."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)


def ignore_signals(*_: Any) -> None:
    """In a loader's worker: a scheduler signals every process, and the trainer needs its workers until it has saved."""
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def stop_with_launcher() -> None:
    """Ask the kernel for SIGTERM when `accelerate launch` dies, which does not forward it to a single process.

    torchrun, which starts several, does. Linux only: elsewhere there is no such call.
    """
    launched_alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if sys.platform == "linux" and launched_alone:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
