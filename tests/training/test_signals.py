"""SIGTERM and SIGUSR1 at any moment of a real trainer: a checkpoint, exit code 143, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
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
    limits = ["--checkpoints_total_limit", "1", "--max_train_steps", "6"]
    return [str(tiny / "tiny.yaml"), "--output_dir", str(folder / "out"), *saving, *limits, *flags]


def wait_for(phase: str, folder: Path, seconds: float = 120) -> int:
    """The process id of the trainer's rank 0, once it is in the phase."""
    file, deadline = folder / "journal.0", time.monotonic() + seconds
    while time.monotonic() < deadline:
        lines = file.read_text().splitlines() if file.exists() else []
        if f"begin {phase}" in lines:
            return int(next(line.split()[1] for line in lines if line.startswith("pid")))
        time.sleep(0.01)
    raise TimeoutError(f"{phase} did not come")


def check_status(folder: Path, name: str) -> None:
    status = json.loads((folder / "out" / "status.json").read_text())
    assert status["state"] == "preempted"
    assert (status["signal"], status["exit_code"]) == (name, 143)
    newest = max((folder / "out").glob("checkpoints/step-*/manifest.json"), default=None)
    assert status["step"] == (int(newest.parent.name.removeprefix("step-")) if newest else 0)
    assert not (folder / "out" / "lock.json").exists()
    assert not list(folder.glob("out/checkpoints/.*"))


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_signal_in_a_phase_saves_and_ends_with_143_and_the_training_goes_on(tiny: Path, tmp_path: Path, phase: str):
    number = signal.SIGUSR1 if phase == "step" else signal.SIGTERM
    process = trainer.start(tmp_path / "journal", arguments(tiny, tmp_path), phase)
    pid = wait_for(phase, tmp_path)
    os.kill(pid, number)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)  # the second does no harm
    process.join(25)
    assert process.exitcode == 143, (tmp_path / "journal.0.out").read_text()[-3000:]
    check_status(tmp_path, number.name)
    again = trainer.start(tmp_path / "journal", arguments(tiny, tmp_path))
    again.join(60)
    assert again.exitcode == 0
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "finished"
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))


@pytest.mark.slow
def test_signal_to_the_whole_group_spares_the_workers_until_the_checkpoint_is_saved(tiny: Path, tmp_path: Path):
    process = trainer.start(tmp_path / "journal", arguments(tiny, tmp_path), "step")
    pid = wait_for("step", tmp_path)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    for target in (*map(int, children), pid):  # as a scheduler does
        os.kill(target, signal.SIGTERM)
    process.join(25)
    assert process.exitcode == 143, (tmp_path / "journal.0.out").read_text()[-3000:]
    assert (tmp_path / "out/checkpoints/step-00000001/manifest.json").exists()
    deadline = time.monotonic() + 10
    while any(process_start(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(process_start(int(child)) for child in children)


def launch_and_stop(tiny: Path, tmp_path: Path, launcher: str, phase: str) -> None:
    command = [sys.executable, "-m", *LAUNCHERS[launcher]]
    flags = []
    if launcher == "torchrun":
        command += ["--master_port", str(trainer.free_port())]
        flags = ["--train_batch_size", "3"]
    command += [trainer.__file__, str(tmp_path / "journal"), phase, *arguments(tiny, tmp_path, *flags)]
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    pid = wait_for(phase, tmp_path)
    process.terminate()  # the launcher, as a scheduler or a user does
    deadline = time.monotonic() + 25
    while process_start(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    output, _ = process.communicate(timeout=60)
    assert not process_start(pid), output[-3000:]
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
