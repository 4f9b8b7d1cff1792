"""Where a number comes from: the commit of this code, and the hardware that computed the number."""

import platform
import subprocess
from pathlib import Path

import torch


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
