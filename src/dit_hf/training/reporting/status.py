"""The file `status.json` of a run: what the run is doing, for people and for the programs that start runs."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ...files import write_text
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
