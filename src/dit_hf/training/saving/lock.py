"""The lock of an output folder: one run at a time, and a lock whose owner is gone is taken over.

The owner writes `lock.json` with its host, its process, and a heartbeat, a number that it raises every ten seconds:

    {"host": "node7", "pid": 4711, "started": "81234", "beat": 42}

Example: the run on node7 is killed. A run that starts on node7 looks into the process table, where process 4711 is gone
or started at another time, and takes the lock at once. A run that starts on node8 cannot see that table: it reads the
file for a minute, and takes the lock if the beat is still 42. No clock is compared with that of another machine.
"""

import fcntl
import json
import os
import socket
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...files import write_text

BEAT_SECONDS = 10.0  # between two heartbeats
WATCH_SECONDS = 60.0  # without a heartbeat, after which an owner is gone; network file systems cache for up to a minute
LOOK_SECONDS = 1.0  # between two readings of a lock that is watched


class FolderLock:
    """Hold a folder while the context is open.

    Args:
        folder: Folder to hold; made if it is missing.

    Raises:
        ValueError: When the context is entered, if another run that is alive holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock.json"
        self._released = threading.Event()
        self._beat = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        guard = os.open(self.path.parent, os.O_RDONLY)
        try:
            _wait_for_turn(guard, self.path.parent)
            owner = read_owner(self.path)
            if owner and is_alive(self.path, owner):
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


def _wait_for_turn(guard: int, folder: Path) -> None:
    """Let runs that start at the same moment look for the owner one after the other.

    Some file systems (NFS without its lock daemon, several FUSE file systems) have no `flock`: a warning is given then.
    """
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
    except OSError as error:
        warnings.warn(
            f"the file system of {folder} has no flock ({error.strerror}): {folder / 'lock.json'} alone keeps a second "
            "run away, and not one that starts at the same moment",
            stacklevel=3,
        )


def read_owner(path: Path) -> dict[str, Any] | None:
    """Return who holds a lock file, or None if it is missing or torn: a torn lock never held its folder."""
    try:
        owner = json.loads(path.read_text())
        return {name: owner[name] for name in ("host", "pid", "started", "beat")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None


def is_alive(path: Path, owner: dict[str, Any]) -> bool:
    """Return whether the owner of a lock file runs: by the process table, or on another machine by its heartbeat."""
    if owner["host"] == socket.gethostname():
        return owner["started"] is not None and owner["started"] == process_start(owner["pid"])
    watched_until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < watched_until:
        time.sleep(LOOK_SECONDS)
        if read_owner(path) != owner:
            return True
    return False


def process_start(pid: int) -> str | None:
    """Return when a process started, which tells it from a later one with its number; None if it is not alive."""
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
