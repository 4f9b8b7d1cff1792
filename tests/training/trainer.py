"""A trainer that writes down what it does, waits where a test wants it to, and dies where a test wants it to.

`start` forks it from a process that has imported everything; as a script it is the same trainer under a real launcher:

    torchrun --nproc_per_node 2 tests/training/trainer.py JOURNAL PHASE SETTINGS...

Its journal has a line for each event of the observer. A phase that a test waits for lasts until the test says so, by a
signal or by `release`, so that no verdict depends on how fast anything is.
"""

import ctypes
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from warm_process import free_port as free_port

from dit_hf.training.observer import Observer
from dit_hf.training.processes.signals import StopRequest

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["dit_hf.training.run", "tensorboard", "trainer_warm_up"])

HANG_SECONDS = 600  # after which a test gives up; nothing that works takes nearly as long


class Journal(Observer):
    """Writes each event to a file, waits in one phase, and dies before one operation on the disk.

    Args:
        file: Path of the journal, to which the rank is added.
        hold: Phase that lasts until the stop request or the file `FILE.release` is there; "step" for the first batch.
        stop: Stop request of the run.
        kill_at: Number of the operation of a save or a deletion, from 1, before which the process kills itself.
        at_batch: What to do at which batch, "RANK:NUMBER" -> a name of `ACTIONS`.
    """

    def __init__(
        self, file: str, hold: str, stop: StopRequest, kill_at: int = 0, at_batch: dict[str, str] | None = None
    ) -> None:
        self.rank = os.environ.get("RANK", "0")
        self.descriptor = os.open(f"{file}.{self.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.release, self.hold, self.stop = Path(f"{file}.release"), hold, stop
        self.kill_at, self.at_batch = kill_at, at_batch or {}
        self.num_batches, self.num_operations, self.phase_now = 0, 0, ""
        self.note(f"pid {os.getpid()}")

    def note(self, text: str) -> None:
        os.write(self.descriptor, f"{text}\n".encode())

    def wait_in(self, phase: str) -> None:
        if phase != self.hold or self.release.exists():
            return
        while not (self.stop or self.release.exists()):
            time.sleep(0.01)
        self.note(f"asked in {phase}")
        while not self.release.exists():
            time.sleep(0.01)

    def on_begin(self, phase: str) -> None:
        self.phase_now = phase
        self.note(f"begin {phase}")
        self.wait_in(phase)

    def on_end(self, phase: str) -> None:
        self.phase_now = ""
        self.note(f"end {phase}")

    def on_model(self, model: Any) -> None:
        from dit_hf.training.processes.shards import is_sharded

        self.note(f"model {type(model).__name__} {'split' if is_sharded(model) else 'whole'}")
        norm = next(module for name, module in model.named_modules() if name.endswith("blocks.1.norm1"))
        norm.register_forward_pre_hook(lambda _, arguments: self.note(f"stream {arguments[0].dtype}"))

    def on_batch(self, batch: Any, draws: Any) -> None:
        self.num_batches += 1
        labels, timesteps = batch.class_labels.tolist(), draws.timestep.tolist()
        self.note(f"samples {batch.next_position} {batch.positions} {labels} {timesteps}")
        if self.num_batches == 1:
            self.note("begin step")
            self.wait_in("step")
        if action := self.at_batch.get(f"{self.rank}:{self.num_batches}"):
            ACTIONS[action](draws)
            self.note(f"did {action}")

    def on_step(self, record: Any) -> None:
        self.note(f"end step {record.step}")

    def on_disk(self, operation: str, path: Path) -> None:
        if self.phase_now not in ("save", "delete"):
            return
        self.num_operations += 1
        self.note(f"disk {operation} {path.name}")
        if self.num_operations == self.kill_at:
            begin_and_die(operation, path)


def signal_workers(number: int) -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)


ACTIONS = {
    "spoil": lambda draws: draws.noise.fill_(float("nan")),
    "kill workers": lambda draws: signal_workers(signal.SIGKILL),  # as the kernel does if memory runs out
    "freeze workers": lambda draws: signal_workers(signal.SIGSTOP),  # as a network that hangs
}


def begin_and_die(operation: str, path: Path) -> None:
    """Leave a file half written, or a folder half deleted, as a kill in the middle of the operation does."""
    if operation == "write":
        path.write_bytes(b"torn")
    if operation == "delete" and path.is_dir():
        next(path.iterdir()).unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def shrink_shared_memory(size: str) -> None:
    """Give this process a /dev/shm of its own, in a mount namespace."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)


def train(
    journal: str, hold: str, arguments: list[str], environment: dict[str, str] | None = None, **events: Any
) -> None:
    """Train as `dit_hf.training.run.main` does, with a journal.

    Args:
        journal: Path of the journal, to which the rank is added.
        hold: Phase to wait in; "" for none.
        arguments: Arguments of the trainer.
        environment: Environment of its process; its output then goes to `JOURNAL.RANK.out`.
        events: Further arguments of `Journal`.
    """
    os.environ.update(environment or {})
    if "SHARED_MEMORY" in os.environ:
        shrink_shared_memory(os.environ["SHARED_MEMORY"])
    multiprocessing.set_start_method("fork", force=True)  # loader workers, as in a trainer started by a launcher
    if environment is not None:
        out = os.open(f"{journal}.{os.environ.get('RANK', 0)}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if "NOBODY_READS" in os.environ:
            reader, out = os.pipe()
            os.close(reader)
        os.dup2(out, 1)
        os.dup2(out, 2)
    from dit_hf.training import run

    exec(os.environ.get("SETUP", ""))  # such as a technique that a test adds
    stop = StopRequest()
    run.main(arguments, observer=Journal(journal, hold, stop, **events), stop=stop)


@functools.cache
def start_server() -> None:
    """Start the process that trainers are forked from, which finds `trainer_warm_up` by its environment only."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        forkserver.ensure_running()


def start(
    journal: Path,
    arguments: list[str],
    hold: str = "",
    rank: int = 0,
    port: int | None = None,
    events: dict[str, Any] | None = None,
    **environment: str,
) -> Any:
    """Fork a trainer from the process that has imported everything; with a port, as one of two."""
    environment = {"OMP_NUM_THREADS": "1", **environment}
    if port is not None:
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **world}
    start_server()
    process = FORKED.Process(target=train, args=(str(journal), hold, arguments, environment), kwargs=events or {})
    process.start()
    return process


def start_two(journal: Path, arguments: list[str], **environment: str) -> list[Any]:
    """Fork two trainers that train together."""
    port = free_port()
    return [start(journal, arguments, rank=rank, port=port, **environment) for rank in range(2)]


def lines(journal: Path, rank: int = 0) -> list[str]:
    """The whole lines of a journal; none before it is there."""
    file = Path(f"{journal}.{rank}")
    return file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []


def output(journal: Path, rank: int = 0) -> str:
    """The end of what a trainer printed."""
    return Path(f"{journal}.{rank}.out").read_text()[-3000:]


def wait_until(condition: Callable[[], bool], event: str) -> None:
    """Wait for an event; a time-out is a hang, never a result."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{event} did not come"
        time.sleep(0.005)


def wait_for(line: str, journal: Path, rank: int = 0) -> int:
    """Wait until a line is in a journal; the process id of the trainer that wrote it last."""
    wait_until(lambda: line in lines(journal, rank), f"{line!r} in {journal.name}.{rank}")
    return int([text for text in lines(journal, rank) if text.startswith("pid")][-1].split()[1])


def release(journal: Path) -> None:
    """Let the trainers go on that wait in a phase."""
    Path(f"{journal}.release").touch()


def finish(processes: list[Any], journal: Path, code: int = 0) -> None:
    """Wait for trainers to end with an exit code."""
    for rank, process in enumerate(processes):
        process.join(HANG_SECONDS)
        assert process.exitcode == code, output(journal, rank)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], sys.argv[3:])
