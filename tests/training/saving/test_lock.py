"""One run a folder: the second is refused, and a lock whose owner is gone is not."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from dit_hf.training.saving import lock
from dit_hf.training.saving.lock import FolderLock, process_start


def test_second_run_in_a_folder_is_refused_by_host_and_process(tmp_path: Path):
    with FolderLock(tmp_path):
        with pytest.raises(ValueError, match=rf"alive: process {os.getpid()} on .* choose another --output_dir"):
            FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=signal.pause)
    process.start()
    with FolderLock(tmp_path) as held:
        owner = json.loads(held.path.read_text())
        left = owner | {"pid": process.pid, "started": process_start(process.pid)}
    (tmp_path / "lock.json").write_text(json.dumps(left))
    with pytest.raises(ValueError, match=f"process {process.pid}"):
        FolderLock(tmp_path).__enter__()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, in the process table still
    with FolderLock(tmp_path):
        pass
    process.join()


def test_number_of_a_dead_process_that_another_has_now_does_not_lock(tmp_path: Path):
    with FolderLock(tmp_path) as held:
        owner = json.loads(held.path.read_text())
    (tmp_path / "lock.json").write_text(json.dumps(owner | {"started": "12345"}))
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}'])
def test_torn_lock_does_not_lock(tmp_path: Path, text: str):
    (tmp_path / "lock.json").write_text(text)
    with FolderLock(tmp_path):
        pass


def test_owner_on_another_machine_is_alive_as_soon_as_its_heart_beats(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 3600)  # a beat ends the watch, whenever it comes
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "far")
    with FolderLock(tmp_path):
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "here")
        with pytest.raises(ValueError, match="on far|on here"):
            FolderLock(tmp_path).__enter__()


def test_owner_on_another_machine_whose_heart_has_stopped_is_gone(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.05)
    left = {"host": "far", "pid": os.getpid(), "started": process_start(os.getpid()), "beat": 7}
    (tmp_path / "lock.json").write_text(json.dumps(left))
    with FolderLock(tmp_path) as held:
        assert json.loads(held.path.read_text())["host"] == lock.socket.gethostname() != "far"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF], ids=errno.errorcode.get)
def test_file_system_without_flock_keeps_the_lock_file_and_is_warned_of(tmp_path: Path, monkeypatch, number: int):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=rf"{tmp_path.name} has no flock \({os.strerror(number)}\)"):
        held = FolderLock(tmp_path).__enter__()
    with pytest.warns(UserWarning, match="no flock"), pytest.raises(ValueError, match=f"alive: process {os.getpid()}"):
        FolderLock(tmp_path).__enter__()
    held.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []
