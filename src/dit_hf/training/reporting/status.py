"""The file `status.json` of a run: what the run is doing, for people and for the programs that start runs.

A run that is killed cannot write that it is: its file says "running" for ever. `read_status` looks at the lock of the
folder as well, whose owner is alive or not, and then says "killed".
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ...files import write_text
from ..saving.lock import is_alive, read_owner
from .tolerance import tolerating


class StatusFile:
    """Write `status.json`; the main process alone does."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, state: str, **details: Any) -> None:
        """Replace the file.

        Args:
            state: What the run is doing: "running", "finished", "preempted" or "failed".
            details: Further entries, such as the step of the newest checkpoint and the reason of a failure.
        """
        entries = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), **details}
        with tolerating("status"):
            write_text(self.file, json.dumps(entries))

    def read(self) -> dict[str, Any]:
        """Return the entries as they stand in the file; none if no run has begun."""
        return json.loads(self.file.read_text()) if self.file.is_file() else {}


def read_status(output_dir: str | Path) -> dict[str, Any]:
    """Return the status of the run in a folder, with the state "killed" if it says "running" and the run is gone.

    For a run on another machine, this watches the heartbeat of its lock for up to a minute.

    Args:
        output_dir: Output folder of the run.

    Raises:
        ValueError: If no run has begun there.
    """
    status = StatusFile(Path(output_dir) / "status.json").read()
    if not status:
        missing = "it has no status.json" if Path(output_dir).is_dir() else "there is no such folder"
        raise ValueError(f"no run has begun in {output_dir}: {missing}; pass the --output_dir of a training")
    if status["state"] == "running":
        lock = Path(output_dir) / "lock.json"
        owner = read_owner(lock)
        if owner is None or not is_alive(lock, owner):
            status["state"] = "killed"
    return status
