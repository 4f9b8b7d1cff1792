"""What ends the data of a training from outside: a checkpoint first, then one line; and nothing that hangs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer


def flags(tiny: Path, folder: Path, *more: str) -> list[str]:
    settings = ["--output_dir", str(folder / "out"), "--max_train_steps", "12", "--validation_steps", "50"]
    return [str(tiny / "tiny.yaml"), *settings, "--checkpointing_steps", "50", *more]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_worker_that_the_kernel_ended_costs_no_step_and_is_named(tiny: Path, tmp_path: Path, num_processes: int):
    port = trainer.free_port() if num_processes > 1 else None
    command = flags(tiny, tmp_path, "--dataloader_num_workers", "2", "--train_batch_size", str(6 // num_processes))
    journal, last = tmp_path / "journal", num_processes - 1

    def start(**events: dict) -> list:
        return [trainer.start(journal, command, rank=rank, port=port, events=events) for rank in range(num_processes)]

    trainer.finish(start(at_batch={f"{last}:3": "kill workers"}), journal, code=1)
    line = trainer.output(journal, last).splitlines()[-1]
    assert line.startswith("error: ")
    assert "a loader worker is gone" in line
    assert "lower --dataloader_num_workers" in line
    for other in range(last):
        assert "error: rank 0: the data of another process have ended" in trainer.output(journal, other)
    done = [line for line in trainer.lines(journal) if line.startswith("end step")]
    assert len(done) >= 3
    assert (tmp_path / "out" / "checkpoints" / f"step-{len(done):08d}" / "manifest.json").is_file()
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "failed"
    trainer.finish(start(), journal)
    whole = tmp_path / "whole"
    whole.mkdir()
    trainer.finish([trainer.start(whole / "journal", flags(tiny, whole))], whole / "journal")
    if num_processes == 1:
        assert losses(tmp_path) == losses(whole)
    else:
        assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-4)  # sums in another order


@pytest.mark.slow
def test_batch_that_does_not_fit_into_shared_memory_is_an_error_with_its_remedy(tiny: Path, tmp_path: Path):
    """In a mount namespace, where /dev/shm has 64 kB; a batch has 96 kB."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace cannot be made without the right to mount")
    journal = tmp_path / "journal"
    command = flags(tiny, tmp_path, "--train_batch_size", "32", "--dataloader_num_workers", "1")
    trainer.finish([trainer.start(journal, command, SHARED_MEMORY="64k")], journal, code=1)
    line = trainer.output(journal).splitlines()[-1]
    assert line.startswith("error: a loader worker has no room in shared memory (/dev/shm) for 0.09 MiB of a batch")
    assert "--dataloader_num_workers" in line
    assert "--shm-size" in line


@pytest.mark.slow
def test_worker_that_sends_nothing_leaves_the_trainer_free_to_stop(tiny: Path, tmp_path: Path):
    journal = tmp_path / "journal"
    process = trainer.start(
        journal, flags(tiny, tmp_path, "--dataloader_num_workers", "1"), events={"at_batch": {"0:2": "freeze workers"}}
    )
    pid = trainer.wait_for("did freeze workers", journal)
    os.kill(pid, signal.SIGTERM)
    trainer.finish([process], journal, code=143)
    done = [line for line in trainer.lines(journal) if line.startswith("end step")]
    assert (tmp_path / "out" / "checkpoints" / f"step-{len(done):08d}" / "manifest.json").is_file()
