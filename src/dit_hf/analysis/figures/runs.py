"""Trainings side by side: losses, losses by quartile of the timesteps, and distances, from the files of each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import label_in_thousands, new_figure, use_logarithmic_axis

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")  # a colour never stands alone; with the colours, 28 trainings look different
PANELS = {  # column of metrics.jsonl -> title
    "loss": "loss",
    "loss_quartile_1": "loss at timesteps 0 to T/4 (nearly clean)",
    "loss_quartile_2": "loss at timesteps T/4 to T/2",
    "loss_quartile_3": "loss at timesteps T/2 to 3T/4",
    "loss_quartile_4": "loss at timesteps 3T/4 to T (nearly noise)",
}


@dataclass(frozen=True)
class Run:
    """What one training logged.

    Args:
        name: Name in the legend.
        rows: Rows of `metrics.jsonl`.
        distances: Rows of `distances.jsonl`, each with the images seen; empty if the training measured none.
    """

    name: str
    rows: list[dict[str, Any]]
    distances: list[dict[str, float]]


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the objects of a file of JSON lines; a last line that is not complete is left out."""
    if not file.is_file():
        return []
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ValueError(f"{file} holds a line that cannot be read ({error}): repair or remove that line") from error


def read_run(folder: Path, name: str) -> Run:
    """Read what a training logged into its folder.

    Args:
        folder: `output_dir` of the training.
        name: Name in the legend.

    Raises:
        ValueError: If the folder has no `metrics.jsonl` with a row, or a line cannot be read.
    """
    rows = _read_lines(folder / "metrics.jsonl")
    if not rows:
        hint = f": pass {folder / 'results.csv'}" if (folder / "results.csv").is_file() else ""
        raise ValueError(f"{folder} is not the folder of a training, or has not logged anything yet{hint}")
    images_per_step = rows[-1]["images_seen"] / rows[-1]["step"]
    distances = [
        {"images_seen": row["step"] * images_per_step, "distance": row["distance"]}
        for row in _read_lines(folder / "distances.jsonl")
    ]
    return Run(name, rows, distances)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or their paths if two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _draw(axis: Axes, runs: Sequence[Run], rows: str, column: str) -> None:
    """Draw a line for each run that has the column; rows without a value, of skipped steps, are left out."""
    for number, run in enumerate(runs):
        points = [(row["images_seen"], row[column]) for row in getattr(run, rows) if row.get(column) is not None]
        if points:
            colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
            marker = "o" if len(points) == 1 else None  # a single point makes no line
            axis.plot(*zip(*points, strict=True), color=colour, ls=line, lw=1.3, marker=marker, label=run.name)
    if axis.lines:
        use_logarithmic_axis(axis)
    axis.set_xlabel("images seen in training")
    label_in_thousands(axis)


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Draw losses, losses by quartile of the timesteps, and distances, against the images seen.

    Losses of different objectives measure different things and cannot be compared.
    """
    figure, axes = new_figure(3, 2)
    for axis, (column, title) in zip(axes, PANELS.items(), strict=False):
        _draw(axis, runs, "rows", column)
        axis.set_title(title, fontsize=9)
    _draw(axes[5], runs, "distances", "distance")
    axes[5].set_title("distance of the previews (--validation_distance)", fontsize=9)
    axes[5].set_visible(bool(axes[5].lines))
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def compare_runs(folders: Sequence[Path], output: Path) -> Path:
    """Draw trainings side by side into a PNG file.

    Args:
        folders: `output_dir` of each training.
        output: Folder for the file `trainings.png`.

    Returns:
        The file.

    Raises:
        ValueError: As in `read_run`.
    """
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    output.mkdir(parents=True, exist_ok=True)
    file = output / "trainings.png"
    draw_runs(runs).savefig(file, metadata={"Software": None})
    return file
