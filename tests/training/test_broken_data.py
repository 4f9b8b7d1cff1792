"""What ends the data of a training from outside: a checkpoint first, then one line; and nothing that hangs."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer
from conftest import striped

from dit_hf.data.sequential import SequentialSource
from dit_hf.training.batch import StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.run import main

SEED = "0"  # with which the first shard comes first


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


def test_shard_that_is_cut_off_costs_no_step_and_is_named_with_its_row(tiny: Path, tmp_path: Path, capsys):
    """The first shard is whole, and has more than a window of rows; of the second, the larger part is gone."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as tar:
            for k in range(SequentialSource.window + 10):
                for suffix, content in (("png", striped(k % 4, k % 5)), ("cls", str(k % 4).encode())):
                    member = tarfile.TarInfo(f"{k:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    os.truncate(tmp_path / "train-1.tar", 20 * 1024 + 100)  # two blocks a file: in the eleventh picture's header
    data = ["--dataset_name", str(tmp_path / "*.tar"), "--image_column", "png", "--label_column", "cls"]
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    data += ["--class_names_file", str(tmp_path / "names.txt")]
    observed = []

    class Steps(Observer):
        def on_step(self, record: StepRecord) -> None:
            observed.append(record.step)

    long = ["--train_batch_size", "128", "--max_train_steps", "20", "--seed", SEED]
    command = flags(tiny, tmp_path, *data, *long, "--dataloader_num_workers", "0")
    with pytest.raises(SystemExit, match=r"^error: row \d+ of .*train-1.tar cannot be read: ReadError"):
        main(command, observer=Steps())
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert status["state"] == "failed"
    assert observed == list(range(1, SequentialSource.window // 128 + 1))
    assert status["step"] == observed[-1]
    assert (tmp_path / "out" / "checkpoints" / f"step-{observed[-1]:08d}" / "manifest.json").is_file()


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
