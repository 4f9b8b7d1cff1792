"""Checkpoints: what comes back is what was saved, and nothing torn or damaged is ever picked."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dit_hf.training import checkpoint
from dit_hf.training.checkpoint import (
    MANIFEST,
    Progress,
    TrainingState,
    find_checkpoints,
    find_damage,
    load_latest,
    save_checkpoint,
)
from dit_hf.training.ema import make_ema


def make_state(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    state = TrainingState(model, make_ema(model, 0.5), optimizer, lr_scheduler)
    train(state, 3)
    return state


def train(state: TrainingState, num_steps: int) -> None:
    for step in range(num_steps):
        state.model(torch.full((2, 4), step + 1.0)).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.lr_scheduler.step()
        state.ema.update_parameters(state.model)


def weights(state: TrainingState) -> list[torch.Tensor]:
    return [*state.model.parameters(), *state.ema.module.parameters()]


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path):
    state = make_state(0)
    save_checkpoint(tmp_path, state, Progress(3, 24, 1, 5), {"seed": 0})
    other = make_state(1)
    assert load_latest(tmp_path, other) == (Progress(3, 24, 1, 5), {"seed": 0})
    train(state, 4)
    train(other, 4)
    torch.testing.assert_close(weights(other), weights(state), rtol=0, atol=0)


def test_no_checkpoint_that_is_whole_is_an_error_and_no_silent_start_from_scratch(tmp_path: Path):
    state = make_state(0)
    (save_checkpoint(tmp_path, state, Progress(2), {}) / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="every checkpoint .* is damaged"):
        load_latest(tmp_path, state)


def test_folder_without_checkpoint_gives_none(tmp_path: Path):
    assert load_latest(tmp_path / "nothing", make_state(0)) is None


def test_newest_is_by_step_and_old_ones_go(tmp_path: Path):
    state = make_state(0)
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, state, Progress(step), {}, total_limit=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    os.utime(tmp_path / "step-00000010")
    assert load_latest(tmp_path, state)[0].step == 100


FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json"]
DAMAGES = [(name, damage) for name in [*FILES, "manifest.json"] for damage in ("bit", "cut", "missing")]
DAMAGES.remove(("manifest.json", "missing"))  # no checkpoint then, but what a kill leaves: passed over without a word


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str):
    state = make_state(0)
    save_checkpoint(tmp_path, state, Progress(1), {})
    file = save_checkpoint(tmp_path, state, Progress(2), {}) / name
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    file.write_bytes(content[: -1 if damage == "cut" else None])
    if damage == "missing":
        file.unlink()
    with pytest.warns(UserWarning, match=f"step-00000002 is damaged.*{name}"):
        assert load_latest(tmp_path, state)[0].step == 1


@pytest.mark.parametrize("crash_point", range(12))
def test_crash_anywhere_in_a_save_leaves_a_complete_checkpoint(tmp_path: Path, monkeypatch, crash_point: int):
    state = make_state(0)
    save_checkpoint(tmp_path, state, Progress(1), {})
    calls = 0

    class Crash(BaseException):
        """Not an Exception: nothing may catch it and go on."""

    def crashing(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > crash_point:
                raise Crash
            return function(*args, **kwargs)

        return call

    for module, name in ((checkpoint, "save_file"), (torch, "save"), (checkpoint, "_fsync"), (os, "replace")):
        monkeypatch.setattr(module, name, crashing(getattr(module, name)))
    try:
        save_checkpoint(tmp_path, state, Progress(2), {})
    except Crash:
        pass
    monkeypatch.undo()
    (tmp_path / ".step-00000002.partial").mkdir(exist_ok=True)  # what a kill leaves, where nothing cleans up
    other = make_state(1)
    progress, _ = load_latest(tmp_path, other)
    renamed = (tmp_path / "step-00000002").exists()  # a crash after that loses nothing
    assert progress.step == (2 if renamed else 1)
    assert renamed == (crash_point > 9)  # two weights, the optimiser, four files, manifest and folder, then the rename
    torch.testing.assert_close(weights(other), weights(state), rtol=0, atol=0)
    assert save_checkpoint(tmp_path, state, Progress(2), {}) in find_checkpoints(tmp_path)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["files", "w", "bytes"]), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANYTHING | ANYTHING.map(lambda inner: {"files": inner}) | st.binary(max_size=20))
def test_manifest_of_anything_is_damage_and_no_crash(tmp_path, content):
    (tmp_path / "w").write_bytes(b"weights")
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    damage = find_damage(tmp_path)
    is_empty = isinstance(content, dict) and content.get("files") == {}
    assert damage is None if is_empty else isinstance(damage, str)
