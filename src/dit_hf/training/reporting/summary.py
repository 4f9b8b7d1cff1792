"""What the files of a training say to a person: how far it is, how it ended, and what to do next."""

import json
import time
from pathlib import Path
from typing import Any

from ..saving.checkpoint import find_checkpoints
from ..settings import read_yaml
from .status import read_status

# State -> what it means; the entries of the status are put in.
STATES = {
    "running": "running, as process {pid} on {host}",
    "finished": "finished",
    "preempted": "stopped, as it was asked to; a checkpoint was saved",
    "failed": "ended by an error",
    "killed": "killed, or its machine was lost: process {pid} on {host} is gone",
}


def describe_run(output_dir: str | Path) -> str:
    """Describe a training for people, one fact on each line.

    Args:
        output_dir: Output folder of the training.

    Raises:
        ValueError: If no training has begun there.
    """
    folder = Path(output_dir)
    status = read_status(folder)
    settings = read_yaml(folder / "settings.yaml") if (folder / "settings.yaml").is_file() else {}
    checkpoints = find_checkpoints(folder / "checkpoints")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["time"]))
    facts = {
        "state": STATES[status["state"]].format(**status) + (f": {status['reason']}" if _says_why(status) else ""),
        "since": when if status["state"] != "killed" else f"began {when}",
        **_progress(_last_row(folder / "metrics.jsonl"), settings.get("max_train_steps")),
        "newest checkpoint": str(checkpoints[-1]) if checkpoints else "none yet",
        "next": _advice(folder, status, bool(checkpoints)),
    }
    return "\n".join([str(folder), *(f"  {name:<18} {fact}" for name, fact in facts.items())])


def _says_why(status: dict[str, Any]) -> bool:
    return status["state"] == "failed" and "reason" in status


def _last_row(metrics: Path) -> dict[str, Any]:
    """Return the last whole row of `metrics.jsonl`; nothing if there is none."""
    lines = metrics.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if metrics.is_file() else []
    return json.loads(lines[-1]) if lines else {}


def _progress(row: dict[str, Any], max_train_steps: int | None) -> dict[str, str]:
    """Return step, images and loss of the last row that was logged."""
    if not row:
        return {"step": "none logged yet" + (f", of {max_train_steps}" if max_train_steps else "")}
    total = f" of {max_train_steps} ({row['step'] / max_train_steps:.0%})" if max_train_steps else ""
    loss = "not finite" if row["loss"] is None else f"{row['loss']:.4g}"
    speed = f", {row['images_per_second']:.3g} a second" if row.get("images_per_second") else ""
    return {
        "step": f"{row['step']}{total}",
        "images seen": f"{row['images_seen']}, epoch {row['epoch']}{speed}",
        "loss": loss,
    }


def _advice(folder: Path, status: dict[str, Any], has_checkpoint: bool) -> str:
    """Say what to do next with a training in this state."""
    if status["state"] == "running":
        return f"wait; `kill {status['pid']}` on {status['host']} stops it, after a checkpoint"
    if status["state"] == "finished":
        return f"draw with `dit-hf generate {folder / 'pipeline'}`; the losses are in {folder / 'loss.png'}"
    again = f"dit-hf train {folder / 'settings.yaml'}"
    begins = "goes on from the newest checkpoint" if has_checkpoint else "begins anew, as no checkpoint was saved"
    mended = "once the cause is mended, " if status["state"] == "failed" else ""
    return f"{mended}the same command again, or `{again}`, {begins}"
