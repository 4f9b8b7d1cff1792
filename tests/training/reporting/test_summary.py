"""What `dit-hf status` tells a person about a training."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dit_hf.cli import app
from dit_hf.training.reporting.status import StatusFile
from dit_hf.training.reporting.summary import describe_run
from dit_hf.training.saving.lock import FolderLock


def facts(folder: Path) -> dict[str, str]:
    """The facts of the description, by name."""
    first, *rest = describe_run(folder).splitlines()
    assert first == str(folder)
    return {line[:20].strip(): line[20:].strip() for line in rest}


def run_files(folder: Path, state: str, step: int = 40, **details) -> None:
    """The files that a run of 100 steps leaves at a step, with checkpoints at each tenth."""
    StatusFile(folder / "status.json").write(state, step=step, **details)
    (folder / "settings.yaml").write_text(yaml.safe_dump({"max_train_steps": 100}))
    for saved in range(10, step + 1, 10):
        (folder / "checkpoints" / f"step-{saved:08d}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{saved:08d}" / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "step-00000090").mkdir(parents=True)  # without a manifest: a save that was not finished
    row = {"step": step, "epoch": 2, "images_seen": 8 * step, "loss": 0.25, "images_per_second": 16.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + '\n{"step": 4')  # a line that a kill has torn


def test_run_that_is_killed_says_so_and_how_to_go_on(tmp_path: Path):
    run_files(tmp_path, "running")
    with FolderLock(tmp_path):
        found = facts(tmp_path)
        assert found["state"].startswith("running, as process ")
        assert "stops it, after a checkpoint" in found["next"]
    found = facts(tmp_path)
    assert found["state"].startswith("killed, or its machine was lost: process ")
    assert found["step"] == "40 of 100 (40%)"
    assert found["images seen"] == "320, epoch 2, 16 a second"
    assert found["loss"] == "0.25"
    assert found["newest checkpoint"] == str(tmp_path / "checkpoints" / "step-00000040")
    assert f"`dit-hf train {tmp_path / 'settings.yaml'}`, goes on from the newest checkpoint" in found["next"]


def test_each_end_has_its_own_advice(tmp_path: Path):
    for state, words in {
        "finished": ("finished", f"dit-hf generate {tmp_path / 'finished' / 'pipeline'}"),
        "preempted": ("stopped, as it was asked to", "goes on from the newest checkpoint"),
        "failed": ("ended by an error: no space", "once the cause is mended, the same command again"),
    }.items():
        folder = tmp_path / state
        folder.mkdir()
        run_files(folder, state, reason="no space")
        found = facts(folder)
        assert found["state"].startswith(words[0])
        assert words[1] in found["next"]


def test_run_without_a_row_or_a_checkpoint_is_described(tmp_path: Path):
    StatusFile(tmp_path / "status.json").write("running", step=0)
    found = facts(tmp_path)
    assert (found["step"], found["newest checkpoint"]) == ("none logged yet", "none yet")
    assert "begins anew, as no checkpoint was saved" in found["next"]


def test_command_describes_several_folders_and_names_one_that_is_none(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run_files(tmp_path / name, "finished")
    result = CliRunner().invoke(app, ["status", str(tmp_path / "one"), str(tmp_path / "two")])
    assert result.output.count("  state              finished") == 2
    for name, message in (("none", "there is no such folder"), (".", "it has no status.json")):
        with pytest.raises(ValueError, match=message):
            describe_run(tmp_path / name)
