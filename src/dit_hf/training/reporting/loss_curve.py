"""The loss curve of a run, drawn from its `metrics.jsonl`."""

import json
from pathlib import Path

from matplotlib.figure import Figure


def plot_losses(metrics: Path, picture: Path) -> None:
    """Draw loss, mse and vb (where there is one) against the step, on a logarithmic axis.

    Args:
        metrics: File `metrics.jsonl` of the run.
        picture: PNG file to write.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if row["loss"] is not None]  # the others are of skipped steps
    if not rows:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    names = [name for name in ("loss", "mse", "vb") if name in rows[-1]]
    for name in names if "vb" in names else ["loss"]:
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
