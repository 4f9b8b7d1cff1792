"""Checkpoints that are either whole or not there: written beside, sealed by a manifest, then renamed.

A checkpoint is the folder `step-00001000` with the model, its EMA, the optimiser, the progress, and `manifest.json`,
which is written last and holds the size and SHA-256 of every file. A folder without a valid manifest is never picked.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

MANIFEST = "manifest.json"


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0
    images_seen: int = 0
    epoch: int = 0  # with `offset`, where the stream of images goes on
    offset: int = 0


@dataclass
class TrainingState:
    """The objects that a checkpoint saves and restores, all unwrapped."""

    model: torch.nn.Module
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler


def save_checkpoint(
    folder: Path, state: TrainingState, progress: Progress, settings: dict[str, Any], total_limit: int | None = None
) -> Path:
    """Write `folder/step-XXXXXXXX` and then delete the oldest ones beyond `total_limit`.

    Args:
        folder: the run's folder of checkpoints.
        state: what is saved.
        progress: how far the training has come.
        settings: of the run, compared when it is resumed.
        total_limit: number of checkpoints kept; None for all.
    """
    target = folder / f"step-{progress.step:08d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(_contiguous(state.model.state_dict()), partial / "model.safetensors")
        save_file(_contiguous(state.ema.module.state_dict()), partial / "ema.safetensors")
        optimizer_state = {"optimizer": state.optimizer.state_dict(), "lr_scheduler": state.lr_scheduler.state_dict()}
        torch.save(optimizer_state, partial / "optimizer.pt")
        (partial / "progress.json").write_text(json.dumps({"progress": vars(progress), "settings": settings}, indent=2))
        _seal(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        _fsync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    complete = find_checkpoints(folder)
    for old in complete[: -total_limit if total_limit else 0]:
        shutil.rmtree(old)
    return target


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by step; folders that a kill left unfinished are passed over."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def load_latest(folder: Path, state: TrainingState) -> tuple[Progress, dict[str, Any]] | None:
    """Restore the newest checkpoint that matches its manifest; None when there is none.

    A damaged one is named in a warning and the one before it is taken.

    Returns:
        How far the training had come, and the settings it ran with.

    Raises:
        ValueError: if there are checkpoints, and all are damaged.
    """
    checkpoints = find_checkpoints(folder)
    for path in reversed(checkpoints):
        if damage := find_damage(path):
            warnings.warn(f"{path} is damaged ({damage}): looking for the checkpoint before it", stacklevel=2)
            continue
        state.model.load_state_dict(load_file(path / "model.safetensors"))
        state.ema.module.load_state_dict(load_file(path / "ema.safetensors"))
        optimizer_state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(optimizer_state["optimizer"])
        state.lr_scheduler.load_state_dict(optimizer_state["lr_scheduler"])
        saved = json.loads((path / "progress.json").read_text())
        return Progress(**saved["progress"]), saved["settings"]
    if checkpoints:
        raise ValueError(f"every checkpoint in {folder} is damaged: move it away to start anew, or restore a copy")
    return None


def find_damage(path: Path) -> str | None:
    """The first file of a checkpoint that is not what its manifest says, or None."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, (num_bytes, sha256) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != num_bytes or _sha256(file) != sha256:
            return f"{name} does not have the SHA-256 of the manifest"
    return None


def _seal(folder: Path) -> None:
    """Write the manifest, after everything it names is on the disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _fsync(path)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps({"files": entries, "torch": torch.__version__}, indent=2))
    _fsync(folder / MANIFEST)
    _fsync(folder)


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
