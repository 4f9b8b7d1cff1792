"""SIGTERM and SIGUSR1 at any moment of a real trainer: a checkpoint, exit code 143, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

from dit_hf.training.saving.lock import process_start

PHASES = ["start", "step", "save", "delete", "preview", "finish"]
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--num_processes", "1", "--cpu"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
}


def arguments(tiny: Path, folder: Path, *flags: str) -> list[str]:
    saving = ["--checkpointing_steps", "2", "--validation_steps", "2", "--dataloader_num_workers", "1"]
    limits = ["--checkpoints_total_limit", "1", "--max_train_steps", "4", "--ema_decay", "0.1"]
    return [str(tiny / "tiny.yaml"), "--output_dir", str(folder / "out"), *saving, *limits, *flags]


def check_status(folder: Path, name: str, code: int = 143) -> None:
    status = json.loads((folder / "out" / "status.json").read_text())
    assert status["state"] == "preempted"
    assert (status["signal"], status["exit_code"]) == (name, code)
    newest = max((folder / "out").glob("checkpoints/step-*/manifest.json"), default=None)
    assert status["step"] == (int(newest.parent.name.removeprefix("step-")) if newest else 0)
    assert not (folder / "out" / "lock.json").exists()
    assert not list(folder.glob("out/checkpoints/.*"))


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_signal_in_a_phase_saves_and_ends_with_143_and_the_training_goes_on(tiny: Path, tmp_path: Path, phase: str):
    number = signal.SIGUSR1 if phase == "step" else signal.SIGTERM
    journal = tmp_path / "journal"
    process = trainer.start(journal, arguments(tiny, tmp_path), phase)
    pid = trainer.wait_for(f"begin {phase}", journal)
    os.kill(pid, number)
    trainer.wait_for(f"asked in {phase}", journal)
    os.kill(pid, signal.SIGTERM)  # the second does no harm
    trainer.release(journal)
    trainer.finish([process], journal, code=143)
    check_status(tmp_path, number.name)
    trainer.finish([trainer.start(journal, arguments(tiny, tmp_path))], journal)
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "finished"
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 5))


@pytest.mark.slow
def test_signal_to_the_whole_group_spares_the_workers_until_the_checkpoint_is_saved(tiny: Path, tmp_path: Path):
    journal = tmp_path / "journal"
    process = trainer.start(journal, arguments(tiny, tmp_path), "step")
    pid = trainer.wait_for("begin step", journal)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    for target in (*map(int, children), pid):  # as a scheduler does
        os.kill(target, signal.SIGTERM)
    trainer.wait_for("asked in step", journal)
    assert all(process_start(int(child)) for child in children)
    trainer.release(journal)
    trainer.finish([process], journal, code=143)
    assert (tmp_path / "out/checkpoints/step-00000001/manifest.json").exists()
    trainer.wait_until(lambda: not any(process_start(int(child)) for child in children), "the end of the workers")


def launch_and_stop(tiny: Path, tmp_path: Path, launcher: str, phase: str) -> None:
    command, journal = [sys.executable, "-m", *LAUNCHERS[launcher]], tmp_path / "journal"
    flags = []
    if launcher == "torchrun":
        command += ["--master_port", str(trainer.free_port())]
        flags = ["--train_batch_size", "3"]
    command += [trainer.__file__, str(journal), phase, *arguments(tiny, tmp_path, *flags)]
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    pid = trainer.wait_for(f"begin {phase}", journal)
    process.terminate()  # the launcher, as a scheduler or a user does
    trainer.wait_for(f"asked in {phase}", journal)
    trainer.release(journal)
    text, _ = process.communicate(timeout=trainer.HANG_SECONDS)
    trainer.wait_until(lambda: not process_start(pid), f"the end of the trainer: {text[-3000:]}")
    check_status(tmp_path, "SIGTERM")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_signal_to_a_launcher_reaches_the_trainer(tiny: Path, tmp_path: Path, launcher: str):
    launch_and_stop(tiny, tmp_path, launcher, "step")


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_signal_to_a_launcher_in_any_phase_saves(tiny: Path, tmp_path: Path, launcher: str, phase: str):
    launch_and_stop(tiny, tmp_path, launcher, phase)
