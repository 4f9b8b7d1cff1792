"""Checkpoints: what comes back is what was saved, and nothing torn or damaged is ever picked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from hypothesis import given
from hypothesis import strategies as st

from dit_hf.files import Watcher, watched
from dit_hf.training.ema import EMA
from dit_hf.training.saving.checkpoint import (
    MANIFEST,
    Progress,
    abandon_after,
    find_checkpoints,
    find_damage,
    newest_whole,
    prune,
    read_info,
    step_of,
    write_checkpoint,
)
from dit_hf.training.saving.saver import CheckpointSaver
from dit_hf.training.saving.state import TrainingState


def make_state(seed: int, decays: tuple[float, ...] = (0.5,), width: int = 4) -> TrainingState:
    torch.manual_seed(seed)
    model = torch.nn.Linear(width, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    state = TrainingState(Accelerator(cpu=True), model, EMA(model, decays), optimizer, lr_scheduler)
    train(state, 3)
    return state


def train(state: TrainingState, num_steps: int) -> None:
    for step in range(num_steps):
        state.model(torch.full((2, state.model.in_features), step + 1.0)).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.lr_scheduler.step()
        state.ema.update(state.model)


def save(folder: Path, state: TrainingState, progress: Progress, settings: dict | None = None) -> Path:
    return write_checkpoint(folder, state.snapshot(), progress, settings or {})


def load_latest(folder: Path, state: TrainingState) -> Progress:
    path = newest_whole(folder)
    state.restore(path)
    return read_info(path).progress


def weights(state: TrainingState) -> list[torch.Tensor]:
    averages = state.ema.averages.values()
    return [*state.model.parameters(), *(weight for average in averages for weight in average.module.parameters())]


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path):
    state, other = make_state(0, (0.5, 0.9)), make_state(1, (0.5, 0.9))
    path = save(tmp_path, state, Progress(3, 24, 1, 5), {"seed": 0})
    assert load_latest(tmp_path, other) == Progress(3, 24, 1, 5)
    assert read_info(path).settings == {"seed": 0}
    train(state, 4)
    train(other, 4)
    torch.testing.assert_close(weights(other), weights(state), rtol=0, atol=0)


def test_scale_of_the_loss_comes_back(tmp_path: Path):
    state, other = make_state(0), make_state(1)
    for each, scale in ((state, 512.0), (other, 4.0)):
        scaler = torch.amp.GradScaler("cpu", scale)
        told = {"num_processes": 1, "distributed_type": DistributedType.NO, "scaler": scaler}
        each.accelerator = type("WithScaler", (), told)()
    save(tmp_path, state, Progress(3))
    load_latest(tmp_path, other)
    assert other.accelerator.scaler.state_dict()["scale"] == 512


def test_average_that_is_missing_is_an_error_unless_a_change_is_allowed(tmp_path: Path):
    path = save(tmp_path, make_state(0), Progress(3))
    other = make_state(1, (0.5, 0.9))
    with pytest.raises(ValueError, match="no ema_0.9.safetensors.*--allow_config_change"):
        other.restore(path)
    with pytest.warns(UserWarning, match=r"ema_0.9.safetensors is missing: this average starts from the checkpoint's"):
        other.restore(path, may_start_averages=True)
    started = list(other.ema.averages[0.9].module.parameters())
    torch.testing.assert_close(started, list(other.model.parameters()), rtol=0, atol=0)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    state = make_state(0)
    next(state.ema.averages[0.5].module.parameters()).data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="weight of ema.safetensors is not finite at step 3"):
        save(tmp_path, state, Progress(3))
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_that_is_whole_is_an_error_and_no_silent_start_from_scratch(tmp_path: Path):
    (save(tmp_path, make_state(0), Progress(2)) / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="every checkpoint .* is damaged"):
        newest_whole(tmp_path)


def test_folder_without_checkpoint_gives_none(tmp_path: Path):
    assert newest_whole(tmp_path / "nothing") is None


def test_newest_is_by_step_whatever_the_clock_says(tmp_path: Path):
    state = make_state(0)
    for step, seconds in ((9, 3e9), (10, 2e9), (100, 1.0)):  # the clock goes backwards
        os.utime(save(tmp_path, state, Progress(step)), (seconds, seconds))
    assert load_latest(tmp_path, state).step == 100
    prune(tmp_path, total_limit=2)
    assert [step_of(path) for path in find_checkpoints(tmp_path)] == [10, 100]


def test_newest_ones_milestones_and_the_best_are_kept(tmp_path: Path):
    snapshot = make_state(0).snapshot()
    for step in range(1, 11):
        write_checkpoint(tmp_path, snapshot, Progress(step), {})
        prune(tmp_path, total_limit=2, milestone_steps=4, keep=[3])
    assert [step_of(path) for path in find_checkpoints(tmp_path)] == [3, 4, 8, 9, 10]
    assert not list(tmp_path.glob(".*"))


def test_checkpoints_that_a_run_goes_back_behind_are_moved_and_not_deleted(tmp_path: Path):
    snapshot = make_state(0).snapshot()
    for number in range(2):
        write_checkpoint(tmp_path, snapshot, Progress(1), {})
        write_checkpoint(tmp_path, snapshot, Progress(2), {})
        with pytest.warns(UserWarning, match="step-00000002 is after step 1 and was moved"):
            abandon_after(tmp_path, 1)
        assert [step_of(path) for path in find_checkpoints(tmp_path)] == [1]
        assert (tmp_path / "abandoned" / f"step-00000002-{number}" / "manifest.json").is_file()


FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json"]
DAMAGES = [(name, damage) for name in [*FILES, "manifest.json"] for damage in ("bit", "cut", "missing")]
DAMAGES.remove(("manifest.json", "missing"))  # no checkpoint then, but what a kill leaves: passed over without a word


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str):
    state = make_state(0)
    save(tmp_path, state, Progress(1))
    file = save(tmp_path, state, Progress(2)) / name
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    file.write_bytes(content[: -1 if damage == "cut" else None])
    if damage == "missing":
        file.unlink()
    with pytest.warns(UserWarning, match=f"step-00000002 is damaged.*{name}"):
        assert load_latest(tmp_path, state).step == 1


class Crash(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def watch(crash_point: int) -> tuple[list[str], Watcher]:
    """Let so many operations on the disk happen, and none after them, as if the power had gone; and note them."""
    done: list[str] = []

    def watcher(operation: str, path: Path) -> None:
        if len(done) >= crash_point:
            raise Crash
        done.append(operation)

    return done, watcher


def test_crash_before_any_operation_of_a_save_leaves_a_complete_checkpoint(tmp_path: Path):
    state = make_state(0)
    old, new = state.snapshot(), make_state(2).snapshot()
    steps, operations, is_over = [], [], False
    while not is_over:
        folder = tmp_path / str(len(steps))
        write_checkpoint(folder, old, Progress(1), {})
        operations, watcher = watch(crash_point=len(steps))
        try:
            with watched(watcher):
                write_checkpoint(folder, new, Progress(2), {})
                prune(folder, total_limit=1)
            is_over = True
        except Crash:
            is_over = False
        other = make_state(1)
        steps.append(load_latest(folder, other).step)
        expected = state if steps[-1] == 1 else make_state(2)
        torch.testing.assert_close(weights(other), weights(expected), rtol=0, atol=0)
        write_checkpoint(folder, new, Progress(3), {})  # what the crash left is in nobody's way
        assert not list(folder.glob(".*"))
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    save = ["create", *["write"] * 5, *["flush"] * 6, "rename", "flush"]  # five files, the folder, its new name
    assert operations == [*save, "rename", "flush", "delete"]


def test_nothing_is_written_renamed_or_deleted_that_is_not_announced(tmp_path: Path):
    """What Python itself reports of each change of the disk; safetensors and torch write without its knowledge."""
    announced, happened, listens = [], [], [True]

    def report(event: str, arguments: tuple) -> None:
        if listens and arguments and str(arguments[0]).startswith(str(tmp_path)):
            kind = {"os.rename": "rename", "shutil.rmtree": "delete"}.get(event, "")
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                kind = "write"
            if kind:
                happened.append((kind, Path(arguments[0]).name))

    sys.addaudithook(report)  # for the rest of the process
    snapshot = make_state(0).snapshot()
    with watched(lambda operation, path: announced.append((operation, path.name))):
        for step in (1, 2, 2):  # the third replaces the second
            write_checkpoint(tmp_path, snapshot, Progress(step), {})
        prune(tmp_path, total_limit=1)
    listens.clear()
    seen_by_python = [each for each in announced if each[0] in ("rename", "delete") or each[1].endswith(".json")]
    assert happened == [each for each in seen_by_python if each[0] != "flush"]
    assert [kind for kind, _ in happened].count("rename") == 3 + 2  # the replaced one, and the pruned one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted without the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_at_any_twentieth_of_a_save_loses_nothing_and_the_next_save_works(small_disk: Path, caplog):
    state = make_state(0, width=20_000)  # a checkpoint of about 1 MB
    folder = small_disk / "checkpoints"
    saver = CheckpointSaver(folder, Accelerator(cpu=True), total_limit=3)
    saver.save(state, Progress(1))
    num_bytes = sum(file.stat().st_size for file in find_checkpoints(folder)[0].iterdir())
    ballast = small_disk / "ballast"
    for twentieth in range(20):
        step = 2 * twentieth + 2
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        ballast.write_bytes(bytes(free - num_bytes * twentieth // 20))
        saver.save(state, Progress(step))
        assert f"checkpoint {step} failed: no space in {folder}, need " in caplog.text
        assert load_latest(folder, make_state(1, width=20_000)).step == step - 1
        assert not list(folder.glob(".*"))
        ballast.unlink()
        saver.save(state, Progress(step + 1))
        assert load_latest(folder, make_state(1, width=20_000)).step == step + 1


def test_full_disk_ends_the_run_where_the_settings_say_so(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    saver = CheckpointSaver(tmp_path, Accelerator(cpu=True), raises=True)
    with pytest.raises(OSError, match="checkpoint 5 failed: no space in .*, need 0.0 MiB, have "):
        saver.save(make_state(0), Progress(5))


def test_manifest_says_which_versions_wrote_it(tmp_path: Path):
    versions = json.loads((save(tmp_path, make_state(0), Progress(1)) / "manifest.json").read_text())["versions"]
    assert versions["torch"] == torch.__version__


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["files", "w", "bytes"]), inner),
    max_leaves=6,
)


@given(content=ANYTHING | ANYTHING.map(lambda inner: {"files": inner}) | st.binary(max_size=20))
def test_manifest_of_anything_is_damage_and_no_crash(tmp_path, content):
    (tmp_path / "w").write_bytes(b"weights")
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    damage = find_damage(tmp_path)
    is_empty = isinstance(content, dict) and content.get("files") == {}
    assert damage is None if is_empty else isinstance(damage, str)
