"""A trainer that tests can watch, stop at a known moment, and start from a process that has imported everything.

`start` forks it; as a script it is the same trainer under a real launcher:

    torchrun --nproc_per_node 2 tests/training/trainer.py JOURNAL PHASE SETTINGS...
"""

import itertools
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["dit_hf.training.run", "tensorboard"])

LINGER_SECONDS = 3  # in the phase that a test waits for


def train(journal: str, phase: str, arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Train, and write down each sample and each beginning and end of a save.

    Args:
        journal: file, to which the rank is added.
        phase: where to linger until a signal comes; "" for nowhere.
        arguments: of the trainer.
        environment: of its process.
    """
    os.environ.update(environment or {})
    multiprocessing.set_start_method("fork", force=True)  # loader workers, as in a trainer started by a launcher
    log = os.open(f"{journal}.{os.environ.get('RANK', 0)}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if environment is not None:
        out = os.open(f"{journal}.{os.environ.get('RANK', 0)}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)

    def note(text: str) -> None:
        os.write(log, f"{text}\n".encode())

    from dit_hf.diffusion import HybridLoss
    from dit_hf.training import loop, run
    from dit_hf.training.reporting import run_folder as output

    def noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            note(f"begin {name}")
            if name == phase:
                deadline = time.monotonic() + LINGER_SECONDS
                while time.monotonic() < deadline:  # a sleep would go on after the signal, a busy program does not
                    time.sleep(0.01)
            result = function(*args, **kwargs)
            note(f"end {name}")
            return result

        return call

    if "SPOILED" in os.environ:  # rank:call of the loss that is not a number
        rank, bad_call = os.environ["SPOILED"].split(":")
        calls, compute = itertools.count(1), HybridLoss.__call__

        def spoiled(self: HybridLoss, *args: Any, **kwargs: Any) -> dict[str, Any]:
            factor = float("nan") if next(calls) == int(bad_call) and rank == os.environ.get("RANK") else 1
            return {name: term * factor for name, term in compute(self, *args, **kwargs).items()}

        HybridLoss.__call__ = spoiled

    draw = loop.KeyedDraws.__call__

    def noting_draw(self: loop.KeyedDraws, batch: loop.LatentBatch) -> loop.Draws:
        drawn = draw(self, batch)
        note(f"samples {batch.next_position} {batch.positions} {batch.class_labels.tolist()} {drawn.timestep.tolist()}")
        return drawn

    build_state = run.build_state

    def noting_state(*args: Any) -> Any:
        assembly = build_state(*args)
        note(f"model {type(assembly.model).__name__} {assembly.state.ema.is_sharded}")
        norm = next(module for name, module in assembly.model.named_modules() if name.endswith("blocks.1.norm1"))
        norm.register_forward_pre_hook(lambda _, arguments: note(f"stream {arguments[0].dtype}"))
        return assembly

    loop.KeyedDraws.__call__ = noting_draw
    run.build_state = noting_state
    output.write_checkpoint = noted(output.write_checkpoint, "save")
    output.prune = noted(output.prune, "delete")
    output.draw_preview_images = noted(output.draw_preview_images, "preview")
    run.DiTModel = noted(run.DiTModel, "start")
    run.finish = noted(run.finish, "finish")
    loop.measure_and_clip = noted(loop.measure_and_clip, "step")
    note(f"pid {os.getpid()}")
    run.main(arguments)


def start(
    journal: Path, arguments: list[str], phase: str = "", rank: int = 0, port: int | None = None, **environment: str
) -> Any:
    """Fork a trainer from the process that has imported everything; with a port, as one of two."""
    environment = {"OMP_NUM_THREADS": "1", **environment}
    if port is not None:
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **world}
    process = FORKED.Process(target=train, args=(str(journal), phase, arguments, environment))
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], sys.argv[3:])
