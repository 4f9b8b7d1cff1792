"""Checkpoints that are either whole or not there: written beside, sealed by a manifest, then renamed.

A checkpoint is the folder `step-00001000` with the model, its averages, the optimiser, the progress, and
`manifest.json`, which is written last and holds the size and SHA-256 of every file. A folder without a valid manifest
is never picked. Folders are ordered by their step, never by time. What is deleted is renamed first, so that a kill in
the middle leaves nothing that looks like a checkpoint.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...files import flush, sha256_of_file

MANIFEST = "manifest.json"
ABANDONED = "abandoned"  # where checkpoints go that a run went back behind
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0
    images_seen: int = 0
    epoch: int = 0  # with `offset`, where the stream of images goes on
    offset: int = 0
    skipped_steps: int = 0  # whose loss or gradient was not finite
    bad_images: dict[str, str] = field(default_factory=dict)  # key -> reason; skipped by any process so far


@dataclass
class Snapshot:
    """What a checkpoint holds, whole and on the CPU."""

    weights: dict[str, dict[str, Tensor]]  # file name -> tensors
    optimizer: dict[str, Any]  # state of the optimiser, the learning rate and the loss scaler

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, which is that of the checkpoint but for some kilobytes."""
        states = self.optimizer.get("optimizer", {}).get("state", {}).values()
        tensors = [tensor for file in self.weights.values() for tensor in file.values()]
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class CheckpointInfo:
    """What `progress.json` of a checkpoint tells."""

    progress: Progress
    settings: dict[str, Any]
    world_size: int


def write_checkpoint(
    folder: Path, snapshot: Snapshot, progress: Progress, settings: dict[str, Any], world_size: int = 1
) -> Path:
    """Write `folder/step-XXXXXXXX`, whole or not at all.

    Args:
        folder: the run's folder of checkpoints.
        snapshot: the tensors.
        progress: how far the training has come.
        settings: of the run, compared when it is resumed.
        world_size: number of processes, told when a run is resumed with another.

    Raises:
        FloatingPointError: if a weight is not finite, naming it.
        OSError: if there is no room for it, with the bytes that are needed and left.
    """
    for file, tensors in snapshot.weights.items():
        if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise FloatingPointError(f"{bad[0]} of {file} is not finite at step {progress.step}: it is not saved")
    target = folder / f"step-{progress.step:08d}"
    partial = folder / f".{target.name}.partial"
    sweep(folder)
    try:
        partial.mkdir(parents=True)
        for file, tensors in snapshot.weights.items():
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / file)
        torch.save(snapshot.optimizer, partial / "optimizer.pt")
        told = {"progress": vars(progress), "settings": settings, "world_size": world_size}
        (partial / "progress.json").write_text(json.dumps(told, indent=2))
        _seal(partial)
        if target.exists():  # a damaged one, from before this run went on
            _remove(target)
        os.replace(partial, target)
        flush(folder)
    except Exception as error:
        available = shutil.disk_usage(folder).free if folder.exists() else 0
        shutil.rmtree(partial, ignore_errors=True)
        if _is_no_space(error, snapshot.num_bytes - available):
            need, have = f"{snapshot.num_bytes / 2**20:.1f} MiB", f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB"
            raise OSError(errno.ENOSPC, f"no space in {folder}, need {need}, have {have}") from error
        raise
    return target


def _is_no_space(error: Exception, missing: int) -> bool:
    """Whether a write failed for want of room; safetensors and torch raise exceptions of their own then."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return "No space left" in str(error) or "os error 28" in str(error) or missing > 0


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by step; folders that a kill left unfinished are passed over."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def prune(
    folder: Path, total_limit: int | None, milestone_steps: int | None = None, keep: Collection[int] = ()
) -> None:
    """Delete the oldest checkpoints beyond `total_limit`.

    Args:
        folder: the run's folder of checkpoints.
        total_limit: number of newest checkpoints that stay; None for all.
        milestone_steps: checkpoints whose step is a multiple of it stay for ever, and are not counted.
        keep: steps that stay too, and are not counted.
    """
    if total_limit is None:
        return
    stays = {path for path in find_checkpoints(folder) if step_of(path) in keep}
    if milestone_steps:
        stays |= {path for path in find_checkpoints(folder) if step_of(path) % milestone_steps == 0}
    for old in [path for path in find_checkpoints(folder) if path not in stays][:-total_limit]:
        _remove(old)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def abandon_after(folder: Path, step: int) -> None:
    """Move the checkpoints after a step aside, as a run goes back to it; nothing is deleted."""
    for path in find_checkpoints(folder):
        if step_of(path) > step:
            number = 0
            while (target := folder / ABANDONED / f"{path.name}-{number}").exists():
                number += 1
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            warnings.warn(f"{path.name} is after step {step} and was moved to {target}", stacklevel=2)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that matches its manifest; None when there is none.

    A damaged one is named in a warning and the one before it is taken.

    Raises:
        ValueError: if there are checkpoints, and all are damaged.
    """
    checkpoints = find_checkpoints(folder)
    for path in reversed(checkpoints):
        damage = find_damage(path)
        if damage is None:
            return path
        warnings.warn(f"{path} is damaged ({damage}): looking for the checkpoint before it", stacklevel=2)
    if checkpoints:
        raise ValueError(f"every checkpoint in {folder} is damaged: move it away to start anew, or restore a copy")
    return None


def read_info(path: Path) -> CheckpointInfo:
    """How far the training of a checkpoint had come, and with which settings."""
    told = json.loads((path / "progress.json").read_text())
    return CheckpointInfo(Progress(**told["progress"]), told["settings"], told["world_size"])


def find_damage(path: Path) -> str | None:
    """The first file of a checkpoint that is not what its manifest says, or None."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    for name, (num_bytes, sha256) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != num_bytes or sha256_of_file(file) != sha256:
            return f"{name} does not have the SHA-256 of the manifest"
    return None


def sweep(folder: Path) -> None:
    """Delete what a kill left unfinished, of a save or of a deletion."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


def _seal(folder: Path) -> None:
    """Write the manifest, after everything it names is on the disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        flush(path)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)} for path in files}
    versions = {name: version(name) for name in ("dit-hf", "torch", "diffusers", "accelerate")}
    (folder / MANIFEST).write_text(json.dumps({"files": entries, "versions": versions}, indent=2))
    flush(folder / MANIFEST)
    flush(folder)


def _remove(path: Path) -> None:
    hidden = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    shutil.rmtree(hidden)
