"""One run a folder: the second is refused, and a lock whose owner is gone is not."""

import json
import multiprocessing
import os
import time
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
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    with FolderLock(tmp_path) as held:
        owner = json.loads(held.path.read_text())
        left = owner | {"pid": process.pid, "started": process_start(process.pid)}
    (tmp_path / "lock.json").write_text(json.dumps(left))
    with pytest.raises(ValueError, match=f"process {process.pid}"):
        FolderLock(tmp_path).__enter__()
    process.kill()  # a zombie until it is waited for
    deadline = time.monotonic() + 10
    while process_start(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
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


@pytest.mark.parametrize("beats", [True, False])
def test_owner_on_another_machine_is_watched(tmp_path: Path, monkeypatch, beats: bool):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.6)
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "far")
    with FolderLock(tmp_path) as held:
        left = held.path.read_text()
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "here")
        if beats:
            with pytest.raises(ValueError, match="on far|on here"):
                FolderLock(tmp_path).__enter__()
    if not beats:
        held.path.write_text(left)
        with FolderLock(tmp_path):
            assert json.loads(held.path.read_text())["host"] == "here"
