"""Code that runs in a process of its own, with the package or without it."""

import os
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from warm_process import SOURCE, run_warm

TESTS = Path(__file__).parent
WITHOUT_PACKAGE = "import importlib.util; assert importlib.util.find_spec('dit_hf') is None\n"
COMMAND = "import sys; sys.argv[0] = 'dit-hf'; from dit_hf.cli import main; main()\n"


def run_elsewhere(code: str, folder: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code that reads the folder FOLDER; the package is there unless the code begins with WITHOUT_PACKAGE.

    Its other names: `seeded`, GOLDEN (the folder of golden files).
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "HF_"))}
    environment = {"HF_HUB_OFFLINE": "1", **environment}
    environment["PYTHONPATH"] = sysconfig.get_path("purelib") if code.startswith(WITHOUT_PACKAGE) else SOURCE
    header = f"FOLDER, GOLDEN = {str(folder)!r}, {str(TESTS / 'golden')!r}\n"
    header += "import torch\nseeded = lambda seed: torch.Generator().manual_seed(seed)\n"
    result = run_warm(header + code, cwd=tmp_path, environment={**inherited, **environment})
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def dit_hf_command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `dit-hf ARGUMENTS` of this source."""
    return run_warm(COMMAND, *arguments, cwd=cwd, environment={**os.environ, "PYTHONPATH": SOURCE})


def run_script(
    script: Path, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENTS` with this source."""
    environment = {**(os.environ if environment is None else environment), "PYTHONPATH": SOURCE}
    return run_warm(code_of(script), *arguments, cwd=cwd, environment=environment)


def code_of(script: Path) -> str:
    """What `python SCRIPT` does."""
    code = f"import runpy, sys; sys.argv[0] = {str(script)!r}; sys.path[0] = {str(script.parent)!r}\n"
    return code + f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
