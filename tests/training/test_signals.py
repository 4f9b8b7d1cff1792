"""A signal at any moment of a real trainer: a checkpoint, a documented exit code, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

from dit_hf.training.loop import StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.processes import signals
from dit_hf.training.processes.signals import Preempted, StopRequest
from dit_hf.training.run import run
from dit_hf.training.saving.lock import process_start
from dit_hf.training.settings import parse_settings

PHASES = ["start", "step", "save", "delete", "preview", "finish"]
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--num_processes", "1", "--cpu"],
    # torchrun kills after 30 seconds, in which a busy machine may not save
    "torchrun": ["torch.distributed.run", "--shutdown_timeout", str(trainer.HANG_SECONDS), "--nproc_per_node", "2"],
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
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_first_ctrl_c_or_hangup_saves_and_ends_with_its_code(tiny: Path, tmp_path: Path, number: int, code: int):
    journal = tmp_path / "journal"
    process = trainer.start(journal, arguments(tiny, tmp_path), "step")
    os.kill(trainer.wait_for("begin step", journal), number)
    trainer.wait_for("asked in step", journal)
    trainer.release(journal)
    trainer.finish([process], journal, code=code)
    check_status(tmp_path, signal.Signals(number).name, code)
    assert (tmp_path / "out/checkpoints/step-00000001/manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGINT, 130),
        (signal.SIGINT, signal.SIGHUP, -signal.SIGHUP),
    ],
    ids=lambda number: getattr(number, "name", None),
)
def test_ctrl_c_or_hangup_after_a_first_signal_ends_at_once(
    tiny: Path, tmp_path: Path, first: int, second: int, code: int
):
    journal = tmp_path / "journal"
    process = trainer.start(journal, arguments(tiny, tmp_path), "step")
    pid = trainer.wait_for("begin step", journal)
    os.kill(pid, first)
    trainer.wait_for("asked in step", journal)
    os.kill(pid, second)
    trainer.finish([process], journal, code=code)  # from within the step, which is not released
    assert "end step 1" not in trainer.lines(journal)
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    trainer.finish([trainer.start(journal, arguments(tiny, tmp_path))], journal)


def test_signals_that_were_ignored_before_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
            signal.raise_signal(signal.SIGUSR1)
            assert stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_hangup_that_a_terminal_sends_twice_is_one(monkeypatch):
    ended: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: ended.append(number))
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGHUP)
            monkeypatch.setattr(signals, "ONE_HANGUP_SECONDS", 3600)
            signal.raise_signal(signal.SIGHUP)
            assert not ended
            monkeypatch.setattr(signals, "ONE_HANGUP_SECONDS", 0)
            signal.raise_signal(signal.SIGHUP)
            assert ended == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_run_in_a_thread_warns_trains_and_stops_when_its_request_says_so(tiny: Path, tmp_path: Path):
    settings = parse_settings(arguments(tiny, tmp_path, "--dataloader_num_workers", "0"))
    stop, ends, warned = StopRequest(), [], []

    class StopAfterStep1(Observer):
        def on_step(self, record: StepRecord) -> None:
            stop.request()

    def train() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                run(settings, stop=stop, observer=StopAfterStep1())
            except Preempted as error:
                ends.append(str(error))
        warned.extend(str(each.message) for each in caught)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(trainer.HANG_SECONDS)
    assert ends == ["asked to stop, the newest checkpoint is that of step 1"]
    assert any("the run is not in the main thread" in text and "stop.request()" in text for text in warned)
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "preempted"
    assert run(settings) == tmp_path / "out" / "pipeline"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, None], ids=["stopped", "finished"])
def test_output_that_nobody_reads_any_more_ends_no_training(tiny: Path, tmp_path: Path, number: int | None):
    journal = tmp_path / "journal"
    process = trainer.start(journal, arguments(tiny, tmp_path), "step", NOBODY_READS="1")
    pid = trainer.wait_for("begin step", journal)
    if number:
        os.kill(pid, number)
        trainer.wait_for("asked in step", journal)
    trainer.release(journal)
    trainer.finish([process], journal, code=129 if number else 0)
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert status["state"] == ("preempted" if number else "finished")


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
