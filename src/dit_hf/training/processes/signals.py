"""How a run is asked to stop: a scheduler (SIGTERM, SIGUSR1), Ctrl-C (SIGINT), or a closed terminal (SIGHUP).

A signal sets a flag and nothing else, so that it does no harm at any moment. Every loop looks at the flag; the run
saves a checkpoint at the end of the step and ends with the exit code of `EXIT_CODES`. After the first signal, Ctrl-C
and SIGHUP do again what they did before the run: the second one ends it at once, without a checkpoint.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from types import FrameType, TracebackType
from typing import Any, Self

# 128 plus the signal's number, as shells report it. SIGUSR1 is a scheduler's warning that SIGTERM will come.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
ENDS_IF_REPEATED = (signal.SIGINT, signal.SIGHUP)
ONE_HANGUP_SECONDS = 0.5  # a terminal that closes sends SIGHUP up to three times: by the kernel and by the shell
PR_SET_PDEATHSIG = 1  # option of Linux' prctl


class Preempted(Exception):
    """The run was asked to stop, and has saved what it had."""


class StopRequest:
    """True once the run was asked to stop; as a context manager it listens to signals while it is open.

    Python delivers signals to the main thread only. In another thread (a notebook's, a web page's) the context gives a
    warning, and `request()` is the way to stop the run:

        stop = StopRequest()
        threading.Thread(target=run, args=(settings,), kwargs={"stop": stop}).start()
        stop.request()
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first signal
        self._is_requested, self._received_at = False, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self._is_requested

    @property
    def exit_code(self) -> int:
        """Exit code of a process that stops for this request."""
        return EXIT_CODES[self.received or signal.SIGTERM]

    def request(self) -> None:
        """Ask the run to stop, from any thread."""
        self._is_requested = True

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "the run is not in the main thread, where Python delivers signals: Ctrl-C and SIGTERM do not save a "
                "checkpoint. Pass run(..., stop=StopRequest()) and call stop.request() to stop it",
                stacklevel=3,
            )
            return self
        for number in EXIT_CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's `&` leave SIGHUP and SIGINT
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number)
        if self.received is None:
            self.received, self._is_requested, self._received_at = name, True, time.monotonic()
            return
        is_echo = name == signal.SIGHUP == self.received and time.monotonic() - self._received_at < ONE_HANGUP_SECONDS
        if name in ENDS_IF_REPEATED and not is_echo:
            signal.signal(name, self._before[name])
            signal.raise_signal(name)


def shield_worker(*_: Any) -> None:
    """Let nobody but the trainer end this worker of a loader.

    A scheduler and a terminal signal every process of a job, and the trainer needs its workers until it has saved.
    """
    trainer = os.getppid()
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_if_asked_by, args=(trainer,), daemon=True).start()


def _end_if_asked_by(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        continue
    os._exit(0)


def stop_with_launcher() -> None:
    """Ask the kernel for SIGTERM when `accelerate launch` dies, which does not forward it to a single process.

    torchrun, which starts several processes, forwards it. Linux only: other systems have no such call.
    """
    launched_alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if sys.platform == "linux" and launched_alone:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave(code: int) -> None:
    """End this process now: it waits neither for a push, nor for a loader's worker, nor for another process."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)  # a further one comes too late
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
