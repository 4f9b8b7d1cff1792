"""Trainings side by side hold the numbers that the trainings logged."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dit_hf import cli
from dit_hf.analysis.figures.runs import COLOURS, LINES, PANELS, compare_runs, draw_runs, read_run


def log_run(folder: Path, losses: list[float | None], distances: list[float] = (), torn: str = "") -> Path:
    """The files of a training that saw eight images a step and logged every fifth step."""
    folder.mkdir(parents=True)
    rows = [
        {"step": 5 * n, "images_seen": 40 * n, "loss": loss, **dict.fromkeys(list(PANELS)[1:], loss)}
        for n, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    if distances:
        lines = [json.dumps({"step": 10 * n, "distance": value}) + "\n" for n, value in enumerate(distances, 1)]
        (folder / "distances.jsonl").write_text("".join(lines))
    return folder


def test_lines_hold_what_the_trainings_logged(tmp_path):
    first = log_run(tmp_path / "first", [4.0, None, 2.0], distances=[30.0, 20.0], torn='{"step": 20, "loss"')
    second = log_run(tmp_path / "second", [3.0, 1.0])
    axes = draw_runs([read_run(first, "first"), read_run(second, "second")]).axes
    for axis in axes[:5]:
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
        assert drawn == {"first": [[40, 4.0], [120, 2.0]], "second": [[40, 3.0], [80, 1.0]]}
    assert axes[5].lines[0].get_xydata().tolist() == [[80, 30.0], [160, 20.0]]  # eight images a step
    assert len(axes[5].lines) == 1


def test_panel_of_distances_is_hidden_where_no_training_measured_any(tmp_path):
    assert not draw_runs([read_run(log_run(tmp_path / "a", [1.0, 2.0]), "a")]).axes[5].get_visible()


def test_trainings_look_different_up_to_28(tmp_path):
    run = read_run(log_run(tmp_path / "a", [1.0, 2.0]), "a")
    lines = draw_runs([run] * 28).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 28 == len(COLOURS) * len(LINES)


def test_command_draws_folders_and_names_those_of_one_name_by_their_paths(tmp_path):
    folders = [str(log_run(tmp_path / name / "dit", [2.0, 1.0])) for name in ("a", "b")]
    result = CliRunner().invoke(cli.app, ["plot", *folders, "--output-dir", str(tmp_path / "figures")])
    assert result.exit_code == 0, result.output
    assert min(Image.open(tmp_path / "figures" / "trainings.png").size) > 600
    runs = [read_run(Path(folder), folder) for folder in folders]
    assert [line.get_label() for line in draw_runs(runs).axes[0].lines] == folders


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not the folder of a training, or has not logged anything yet$"),
        ({"metrics.jsonl": '{"step": 1'}, "has not logged anything yet$"),
        ({"results.csv": ""}, "has not logged anything yet: pass .*results.csv$"),
        ({"metrics.jsonl": "{}}\n"}, "metrics.jsonl holds a line that cannot be read .*: repair or remove that line"),
    ],
)
def test_folder_of_no_training_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        compare_runs([tmp_path], tmp_path / "figures")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--samples", "RUN"], "--samples is for the results of a study: leave it out"),
        (["RUN", "--no-quoted"], "--quoted is for the results of a study"),
        (["RUN", "results.csv"], "pass one results.csv, or folders of trainings only"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(tmp_path, arguments, message):
    log_run(tmp_path / "RUN", [1.0, 2.0])
    (tmp_path / "results.csv").touch()
    places = [str(tmp_path / argument) if (tmp_path / argument).exists() else argument for argument in arguments]
    result = CliRunner().invoke(cli.app, ["plot", *places])
    assert message in str(result.exception)
