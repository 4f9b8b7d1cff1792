"""Being asked to stop: SIGTERM and SIGUSR1, as schedulers send them before they take a machine away.

A signal sets a flag and nothing else, so that it does no harm at any moment, nor does a second one. Every loop looks at
the flag; the run saves a checkpoint at the next step's boundary and ends with `EXIT_CODE`.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
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


def shield_worker(*_: Any) -> None:
    """In a loader's worker: only the trainer ends it.

    A scheduler signals every process of a job, and the trainer needs its workers until it has saved.
    """
    trainer = os.getppid()
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(trainer,), daemon=True).start()


def _end_when_told_by(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        continue
    os._exit(0)


def stop_with_launcher() -> None:
    """Ask the kernel for SIGTERM when `accelerate launch` dies, which does not forward it to a single process.

    torchrun, which starts several, does. Linux only: elsewhere there is no such call.
    """
    launched_alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if sys.platform == "linux" and launched_alone:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave(code: int) -> None:
    """End this process now: it waits neither for a push, nor for a loader's worker, nor for another process."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
