"""What status.json says of a run, and what a reader makes of it when the run is gone."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the forked processes find the module by its name

import trainer

from dit_hf.training.reporting.status import StatusFile, read_status
from dit_hf.training.saving import lock
from dit_hf.training.saving.lock import FolderLock


def state(folder: Path) -> str:
    return read_status(folder)["state"]


def test_reader_tells_a_run_that_goes_on_from_one_that_is_gone(tmp_path: Path):
    with pytest.raises(ValueError, match="no run has begun in .*: it has no status.json"):
        read_status(tmp_path)
    with FolderLock(tmp_path) as held:
        StatusFile(tmp_path / "status.json").write("running", step=3)
        assert state(tmp_path) == "running"
        owner = json.loads(held.path.read_text())
    assert state(tmp_path) == "killed"  # its lock is gone, as one that was deleted by hand

    process = multiprocessing.get_context("fork").Process(target=signal.pause)
    process.start()
    left = owner | {"pid": process.pid, "started": lock.process_start(process.pid)}
    (tmp_path / "lock.json").write_text(json.dumps(left))
    assert state(tmp_path) == "running"
    process.kill()
    process.join()
    assert state(tmp_path) == "killed"
    for ended in ("finished", "preempted", "failed"):
        StatusFile(tmp_path / "status.json").write(ended)
        assert state(tmp_path) == ended


def test_reader_on_another_machine_watches_the_heartbeat(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "far")
    with FolderLock(tmp_path) as held:
        StatusFile(tmp_path / "status.json").write("running")
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "here")
        monkeypatch.setattr(lock, "WATCH_SECONDS", 3600)  # a beat ends the watch, whenever it comes
        assert state(tmp_path) == "running"
        owner = json.loads(held.path.read_text())
    (tmp_path / "lock.json").write_text(json.dumps(owner | {"host": "far"}))
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.05)  # nothing beats
    assert state(tmp_path) == "killed"


@pytest.mark.slow
def test_killed_run_is_told_from_a_living_one_and_the_next_start_says_so(tiny: Path, tmp_path: Path):
    journal, command = tmp_path / "journal", [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "out")]
    process = trainer.start(journal, command, "step")
    pid = trainer.wait_for("begin step", journal)
    assert state(tmp_path / "out") == "running"
    os.kill(pid, signal.SIGKILL)
    process.join()
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "running"
    assert state(tmp_path / "out") == "killed"
    trainer.release(journal)
    trainer.finish([trainer.start(journal, command)], journal)
    assert "the run before this one did not end by itself" in trainer.output(journal)
    assert state(tmp_path / "out") == "finished"
