"""Where a number comes from: the commit of this code, versions, hardware, and the hash of a model's weights."""

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str | None:
    """Return the commit of this code in 40 hexadecimal digits, with "+" after them if a file of it was changed since.

    Returns:
        None if git is missing, or if the package is not part of a git repository.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else the repository around it is somebody else's
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with the number of threads that torch uses.

    Args:
        device: The device that computes.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a number depends on besides its settings: versions, commit and hardware, as JSON can hold it.

    Args:
        device: The device that computes.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "commit": commit(),
        "hardware": hardware(device),
    }


def weights_sha256(*modules: nn.Module | None) -> str:
    """Return one SHA-256 of the names, types, shapes and bytes of all weights and buffers, in hexadecimal.

    Args:
        *modules: The modules in their order; None is passed over.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items() if module is not None else ():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
