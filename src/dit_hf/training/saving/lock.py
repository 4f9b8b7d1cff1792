"""One run a folder: a lock file with host and process, and how to tell that its owner is gone.

On the same machine the process table answers. The owner on another machine is watched: it rewrites the file every few
seconds, so a file that stays as it is for longer has lost its owner. No clock is compared with another.
"""

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...files import write_text

BEAT_SECONDS = 10.0
WATCH_SECONDS = 60.0  # network file systems may show a file as it was for up to a minute


class FolderLock:
    """Hold a folder while the context is open.

    Args:
        folder: made if it is not there.

    Raises:
        ValueError: when entered, if another run that is alive holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock.json"
        self._released = threading.Event()
        self._beat = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        guard = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)  # two that start together look one after the other
            owner = self._read()
            if owner and self._is_alive(owner):
                raise ValueError(
                    f"{self.path.parent} belongs to a run that is alive: process {owner['pid']} on {owner['host']}. "
                    f"Wait for it or stop it, or choose another --output_dir"
                )
            self._write()
        finally:
            os.close(guard)
        self._heart = threading.Thread(target=self._keep_beating, daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._heart.join()
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self.path.read_text())
            return {name: owner[name] for name in ("host", "pid", "started", "beat")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # torn by a kill: its owner never held the folder
            return None

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        if owner["host"] == socket.gethostname():
            return owner["started"] is not None and owner["started"] == process_start(owner["pid"])
        watched_until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < watched_until:
            time.sleep(WATCH_SECONDS / 60)
            if self._read() != owner:
                return True
        return False

    def _write(self) -> None:
        pid = os.getpid()
        owner = {"host": socket.gethostname(), "pid": pid, "started": process_start(pid), "beat": self._beat}
        write_text(self.path, json.dumps(owner))

    def _keep_beating(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            self._beat += 1
            try:
                self._write()
            except OSError:  # a full disk does not end the run
                continue


def process_start(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None if there is none alive."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():  # not Linux
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return "alive"
        return "alive"
    try:
        state, *rest = stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else rest[18]  # field 22 of proc(5): clock ticks since the machine started
