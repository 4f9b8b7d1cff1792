"""Checkpoints of a training: each is a folder that is either whole or not there.

A checkpoint is the folder `step-00001000` with the weights, their averages, the optimiser's state, the progress, and a
manifest. The manifest, `manifest.json`, lists every other file with its size and SHA-256, and the versions that wrote
them; it is how a reader tells a damaged checkpoint from a sound one:

    {"files": {"model.safetensors": {"bytes": 1234, "sha256": "9f86..."}, ...}, "versions": {"torch": "2.13.0", ...}}

`dit_hf.files` writes the folder under a hidden name and renames it, so a kill leaves no half of a checkpoint; a folder
without a manifest is never picked. Checkpoints are ordered by their step, never by time.
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

from ...files import announce, folder_written_whole, remove_folder, remove_leftovers, sha256_of_file

MANIFEST = "manifest.json"
ABANDONED = "abandoned"  # folder of the checkpoints that a run has gone back behind
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0
    images_seen: int = 0
    epoch: int = 0  # with `offset`, the position at which the stream of images continues
    offset: int = 0
    skipped_steps: int = 0  # steps whose loss or gradient was not finite
    bad_images: dict[str, str] = field(default_factory=dict)  # key -> reason; skipped by any process so far


@dataclass
class Snapshot:
    """What a checkpoint holds, whole and on the CPU."""

    weights: dict[str, dict[str, Tensor]]  # file name -> tensors
    optimizer: dict[str, Any]  # state of the optimiser, the learning rate and the loss scaler

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, which is the size of the checkpoint but for some kilobytes."""
        states = self.optimizer.get("optimizer", {}).get("state", {}).values()
        tensors = [tensor for file in self.weights.values() for tensor in file.values()]
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class CheckpointInfo:
    """What `progress.json` of a checkpoint holds."""

    progress: Progress
    settings: dict[str, Any]
    world_size: int


def write_checkpoint(
    folder: Path, snapshot: Snapshot, progress: Progress, settings: dict[str, Any], world_size: int = 1
) -> Path:
    """Write `folder/step-XXXXXXXX`, whole or not at all.

    Args:
        folder: Folder of the run's checkpoints; made if it is missing.
        snapshot: Tensors to save.
        progress: How far the training has come.
        settings: Settings of the run, which a resumed run compares with its own.
        world_size: Number of processes, which a resumed run logs if its own is another.

    Raises:
        FloatingPointError: If a weight is not finite, naming the weight.
        OSError: If the disk has no room, with the bytes that are needed and left, or if it cannot be written to.
    """
    for file, tensors in snapshot.weights.items():
        if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise FloatingPointError(f"{bad[0]} of {file} is not finite at step {progress.step}: it is not saved")
    target = folder / f"step-{progress.step:08d}"
    sweep(folder)
    try:
        with folder_written_whole(target) as partial:  # replaces a damaged checkpoint of the same step
            for file, tensors in snapshot.weights.items():
                announce("write", partial / file)
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / file)
            announce("write", partial / "optimizer.pt")
            torch.save(snapshot.optimizer, partial / "optimizer.pt")
            _write_json(
                partial / "progress.json",
                {"progress": vars(progress), "settings": settings, "world_size": world_size},
            )
            _write_json(partial / MANIFEST, _describe_files(partial))
    except Exception as error:
        available = shutil.disk_usage(folder).free if folder.exists() else 0
        if _is_no_space(error, snapshot.num_bytes - available):
            need, have = f"{snapshot.num_bytes / 2**20:.1f} MiB", f"{available / 2**20:.1f} MiB"
            raise OSError(errno.ENOSPC, f"no space in {folder}, need {need}, have {have}") from error
        raise
    return target


def _write_json(path: Path, content: dict[str, Any]) -> None:
    announce("write", path)
    path.write_text(json.dumps(content, indent=2))


def _describe_files(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)} for path in files}
    return {
        "files": entries,
        "versions": {name: version(name) for name in ("dit-hf", "torch", "diffusers", "accelerate")},
    }


def _is_no_space(error: Exception, missing: int) -> bool:
    """Return whether a write failed because the disk is full; safetensors and torch raise exceptions of their own."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return "No space left" in str(error) or "os error 28" in str(error) or missing > 0


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run that have a manifest, ordered by step."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def prune(
    folder: Path, total_limit: int | None, milestone_steps: int | None = None, keep: Collection[int] = ()
) -> None:
    """Delete the oldest checkpoints beyond `total_limit`.

    Args:
        folder: Folder of the run's checkpoints.
        total_limit: Number of newest checkpoints that stay; None keeps all.
        milestone_steps: Checkpoints whose step is a multiple of this number stay for ever, and are not counted.
        keep: Steps whose checkpoints stay as well, and are not counted.
    """
    if total_limit is None:
        return
    stays = {path for path in find_checkpoints(folder) if step_of(path) in keep}
    if milestone_steps:
        stays |= {path for path in find_checkpoints(folder) if step_of(path) % milestone_steps == 0}
    for old in [path for path in find_checkpoints(folder) if path not in stays][:-total_limit]:
        remove_folder(old)


def sweep(folder: Path) -> None:
    """Delete what kills left unfinished in a folder of checkpoints, of saves and of deletions."""
    remove_leftovers(folder, "step-*")


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def abandon_after(folder: Path, step: int) -> None:
    """Move the checkpoints after a step to `abandoned/`, as a run goes back to that step; nothing is deleted."""
    for path in find_checkpoints(folder):
        if step_of(path) > step:
            number = 0
            while (target := folder / ABANDONED / f"{path.name}-{number}").exists():
                number += 1
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            warnings.warn(f"{path.name} is after step {step} and was moved to {target}", stacklevel=2)


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that matches its manifest, or None if there is no checkpoint.

    A damaged checkpoint is named in a warning, and the one before it is examined.

    Raises:
        ValueError: If there are checkpoints, and all are damaged.
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
    """Return how far the training of a checkpoint had come, and with which settings."""
    content = json.loads((path / "progress.json").read_text())
    return CheckpointInfo(Progress(**content["progress"]), content["settings"], content["world_size"])


def find_damage(path: Path) -> str | None:
    """Return what is wrong with the first file of a checkpoint that differs from the manifest, or None."""
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
