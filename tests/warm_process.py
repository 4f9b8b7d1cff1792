"""A process that has imported the libraries, but not this package, and forks a child for each piece of code.

PyTorch, transformers, diffusers, datasets and accelerate take a new interpreter about eight seconds of a processor. A
child of this process has them already. Otherwise it is as a new process: it imports this package itself, or cannot find
it; it has the environment, folder and arguments that it is given; and it ends as an interpreter ends, with the exit
code and the output of a program. What is read from the environment only when a library is imported is read again.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HANG_SECONDS = 7200  # after which a test gives up; nothing that works takes nearly as long
SOURCE = str(Path(__file__).parents[1] / "src")

# The server answers each line, a request, with the exit codes of the children that ran it, one for each environment.
# A child leaves the loop.
SERVER = """
import gc, importlib, json, os, shutil, sys
import accelerate, datasets, diffusers, huggingface_hub.hf_api, matplotlib.pyplot, PIL.Image, scipy.linalg, torch
import diffusers.guiders, diffusers.hooks, diffusers.pipelines.pipeline_utils, transformers.modeling_utils
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from transformers import AutoConfig, AutoModel, PreTrainedModel
assert importlib.util.find_spec("dit_hf") is None
gc.freeze()  # what is here stays: no child looks through it for garbage
folder, modules, path = os.getcwd(), os.environ["HF_MODULES_CACHE"], sys.path
while True:
    line = sys.stdin.readline()
    if not line:  # whoever asked has ended, in whatever way
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    request = json.loads(line)
    shutil.rmtree(modules, ignore_errors=True)
    children = []
    for environment, files in zip(request["environments"], request["files"]):
        children.append(os.fork())
        if not children[-1]:
            break
    if not children[-1]:
        break
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(environment)
sys.path[:] = ["", *os.environ.get("PYTHONPATH", "").split(os.pathsep), *path]
sys.argv[:] = ["-c", *request["arguments"]]
for descriptor, name in enumerate(files):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
importlib.reload(huggingface_hub.constants)
huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
importlib.reload(datasets.config)
exec(compile(request["code"], "<string>", "exec"))
"""


class WarmProcess:
    """The process, which lives until this one ends and with it the pipe between them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warm_process"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_"))}
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment["HF_MODULES_CACHE"] = str(self.folder / "modules")
        # without `site` no .pth file is read, so the libraries are there and a package installed for development is not
        environment["PYTHONPATH"] = sysconfig.get_path("purelib")
        self.server = subprocess.Popen(
            [sys.executable, "-S", "-c", SERVER],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, code: str, arguments: Sequence[str], cwd: Path | str, environments: list[dict[str, str]], timeout: float
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run the code in as many children at once as there are environments."""
        outputs = [[self.folder / f"{name}{k}" for name in ("out", "error")] for k in range(len(environments))]
        for file in itertools.chain(*outputs):
            file.write_bytes(b"")
        request: dict[str, Any] = {"code": code, "arguments": list(arguments), "cwd": str(cwd)}
        request |= {"environments": environments, "files": [[os.devnull, *map(str, pair)] for pair in outputs]}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        if not select.select([self.server.stdout], [], [], timeout)[0]:
            self.close()
            start.cache_clear()
            raise subprocess.TimeoutExpired(code, timeout)
        statuses = json.loads(self.server.stdout.readline())
        return [
            subprocess.CompletedProcess(code, status, *(file.read_text(errors="replace") for file in pair))
            for status, pair in zip(statuses, outputs, strict=True)
        ]

    def close(self) -> None:
        """End the process, with a child that may still run."""
        if self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def start() -> WarmProcess:
    return WarmProcess()


def run_warm(
    code: str,
    *arguments: str,
    cwd: Path | str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = HANG_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run code as `python -c CODE ARGUMENTS` would, on one thread.

    Args:
        code: What to run. It finds this package only by the environment's PYTHONPATH.
        arguments: `sys.argv` after its first entry.
        cwd: Folder of the process. Default: the present one.
        environment: Whole environment of the process. Default: the present one.
        timeout: Seconds after which the process hangs.
    """
    environment = dict(os.environ if environment is None else environment)
    return start().run(code, arguments, cwd or os.getcwd(), [environment], timeout)[0]


def run_two(code: str, *arguments: str, timeout: float = HANG_SECONDS) -> list[subprocess.CompletedProcess[str]]:
    """Run code in two processes of one group, as `torchrun --nproc_per_node 2` does, with this package."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common = {**os.environ, **world, "PYTHONPATH": SOURCE}
    environments = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    results = start().run(code, arguments, os.getcwd(), environments, timeout)
    for result in results:
        assert result.returncode == 0, result.stderr[-3000:]
    return results


def free_port() -> int:
    """A port below those that the kernel gives to outgoing connections, so that nothing takes it in the meantime."""
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 30_000)))
            return listener.getsockname()[1]
