"""Code that runs in a process of its own, with the package or without it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

TESTS = Path(__file__).parent
WITHOUT_PACKAGE = "import importlib.util; assert importlib.util.find_spec('dit_hf') is None\n"


def run_elsewhere(code: str, folder: Path, tmp_path: Path, **environment: str) -> None:
    """Run code that reads the folder FOLDER; the package is there unless the code begins with WITHOUT_PACKAGE.

    Its other names: `seeded`, GOLDEN (the folder of golden files).
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "HF_"))}
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", **environment}
    # without `site` no .pth file is read, so the libraries are there and a package installed for development is not
    without = code.startswith(WITHOUT_PACKAGE)
    environment["PYTHONPATH"] = sysconfig.get_path("purelib") if without else str(TESTS.parent / "src")
    header = f"FOLDER, GOLDEN = {str(folder)!r}, {str(TESTS / 'golden')!r}\n"
    header += "import torch\nseeded = lambda seed: torch.Generator().manual_seed(seed)\n"
    command = [sys.executable, *(["-S"] if without else []), "-c", header + code]
    arguments = {"cwd": tmp_path, "env": {**inherited, **environment}, "timeout": 300}
    result = subprocess.run(command, capture_output=True, text=True, **arguments)
    assert result.returncode == 0, result.stderr[-3000:]
