"""A whole study in seconds: complete, the same when it is stopped or killed, and nothing twice."""

import time
from dataclasses import replace

import pytest
import torch
import yaml
from typer.testing import CliRunner

import dit_hf.study.run as run_module
from dit_hf import cli
from dit_hf.analysis import read_rows
from dit_hf.analysis.results import REAL
from dit_hf.study.recipe import Cell, measurements
from dit_hf.study.run import Study, missing
from dit_hf.study.train import Training

UNREPEATABLE = {"train_seconds": 0.0, "sample_seconds": 0.0, "date": "", "commit": ""}


def comparable(folder) -> list:
    return [replace(row, **UNREPEATABLE) for row in read_rows(folder / "results.csv")]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few(monkeypatch):
    """Three trainings instead of fifteen."""
    three = [("S/8", "adaln_zero"), ("S/4", "adaln_zero"), ("S/8", "in_context")]
    monkeypatch.setattr("dit_hf.study.recipe.cells", lambda seed: [Cell(*names, seed) for names in three])


@pytest.mark.slow
def test_study_measures_everything_once(recipe, tmp_path):
    study = Study(recipe, tmp_path)
    assert "in all" in study.plan()
    study.run()
    rows = read_rows(tmp_path / "results.csv")
    assert [row.key for row in rows if row.model != REAL] == measurements(recipe)
    assert missing(recipe, tmp_path / "results.csv") == []
    assert {row.num_samples for row in rows if row.model == REAL} == {8, 9, 10, 20}
    last = [row for row in rows if row.images_seen == 64]
    assert all(row.train_seconds > 0 and row.parameters > 0 and row.gmacs > 0 for row in last)
    assert len(list((tmp_path / "samples").glob("*.npz"))) == len({row.key.name for row in rows if row.model != REAL})

    before = (tmp_path / "results.csv").read_bytes()
    study.run()
    assert (tmp_path / "results.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_study_that_was_stopped_and_killed_ends_with_the_same_numbers(recipe, tmp_path, monkeypatch):
    Study(recipe, tmp_path / "whole").run()

    stopped = tmp_path / "stopped"
    append, calls = run_module.append_rows, 0

    def killed(path, rows):
        nonlocal calls
        calls += 1
        if calls % 6 == 0:
            raise KeyboardInterrupt
        append(path, rows)

    monkeypatch.setattr(run_module, "append_rows", killed)
    monkeypatch.setattr("dit_hf.study.train.SAVE_SECONDS", 0)  # a checkpoint each step
    for _ in range(30):
        try:
            Study(recipe, stopped).run(time.monotonic() + 0.3)
        except KeyboardInterrupt:
            continue
        if not missing(recipe, stopped / "results.csv"):
            break
    assert calls > 6
    assert comparable(stopped) == comparable(tmp_path / "whole")


@pytest.mark.usefixtures("few")
def test_folder_of_another_recipe_is_refused(recipe, tmp_path):
    study = Study(recipe, tmp_path)
    cell = Cell("S/8", "adaln_zero", 0)
    assert study._training(cell).advance(32, lambda: False)
    other, folder = replace(recipe, learning_rate=1.0), tmp_path / "checkpoints" / cell.folder
    with pytest.raises(ValueError, match="choose a new folder"):
        Training(other, cell, study.train, study.latents, folder, study.accelerator)


@pytest.mark.slow
def test_command_plans_before_it_works_and_stops_at_its_budget(recipe, tmp_path):
    file = tmp_path / "recipe.yaml"
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(recipe).items()}
    file.write_text(yaml.safe_dump(fields))
    arguments = ["study", str(tmp_path / "out"), "--recipe", str(file), "--seeds", "4", "--budget-minutes", "0"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "seed 4, 64 images seen, 10 samples, 2 steps" in result.output
    assert {row.model for row in read_rows(tmp_path / "out" / "results.csv")} == {REAL}
