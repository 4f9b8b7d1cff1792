"""Figures of sampling: the number of steps, the scale of guidance, and the samples (figures 7 and 10 of the paper).

Each function takes the rows of a study, and returns None if the rows do not suffice for the figure.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...configuration_dit import PATCHES, SIZES
from ..quoted import IMAGENET_256
from ..results import Row
from ..selection import by_model, last_checkpoint, points, rows_by_steps, trained
from .style import (
    DISTANCE,
    MARKERS,
    METRICS,
    SIZE_COLOURS,
    describe_rows,
    draw_line,
    new_figure,
    size_and_patch,
    start_at_zero,
)


def sampling_compute(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 10: distance against the compute of sampling; more steps do not replace a larger model."""
    del quoted  # the paper prints no numbers of this figure
    chosen = rows_by_steps(rows)
    if not chosen:
        return None
    figure, (axis,) = new_figure(1, width=5.6, height=4.2)
    models = by_model(chosen)
    for model, group in models.items():
        size, _ = size_and_patch(model)
        means = [point._replace(x=point.x * group[0].gmacs) for point in points(group, "num_steps")]
        draw_line(axis, means, model, SIZE_COLOURS[size], MARKERS[size])
    labelled = next(iter(models))  # the other models have the same numbers of steps
    for row in models[labelled]:
        at = (row.num_steps * row.gmacs, row.distance)
        axis.annotate(str(row.num_steps), at, (0, 6), textcoords="offset points", fontsize=6)
    axis.set(
        title=describe_rows(chosen),
        xscale="log",
        xlabel="sampling compute: multiply-adds x steps / 10⁹",
        ylabel=DISTANCE,
    )
    start_at_zero(axis)
    axis.legend(frameon=False, title=f"numbers at {labelled}: steps")
    return figure


def guidance(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Metrics against the scale of guidance, and the recall of LDM-4 and DiT-XL/2 as the paper prints it."""
    guided = [row for row in trained(rows) if row.guidance_scale > 1]
    if not guided:
        return None
    # the model, checkpoint and number of samples with the most scales
    same = Counter(row.key._replace(guidance_scale=0) for row in guided).most_common(1)[0][0]
    chosen = [row for row in trained(rows) if row.key._replace(guidance_scale=0) == same]
    figure, axes = new_figure(3, 2, width=3.2, height=3)
    for axis, (name, label) in zip(axes, METRICS.items(), strict=False):
        draw_line(axis, points(chosen, "guidance_scale", name), same.model, "#0072B2", "o")
        axis.set(xlabel="scale of guidance", ylabel=label)
    paper = axes[len(METRICS)]
    paper.set_visible(quoted)
    axes[-1].set_visible(False)
    if quoted:
        for prefix, colour, marker in (("LDM-4", "#0072B2", "s"), ("DiT-XL/2", "#D55E00", "D")):
            recalls = [result.recall or 0.0 for result in IMAGENET_256 if result.model.startswith(prefix)]
            paper.plot([1, 1.25, 1.5], recalls, color=colour, marker=marker, label=prefix)
        paper.set_title("quoted from the paper: ImageNet 256 px", fontsize=8)
        paper.set(xlabel="scale of guidance", ylabel="recall")
        paper.legend(frameon=False)
    figure.suptitle(f"{same.model}: {describe_rows(chosen)}")
    return figure


def sample_grid(rows: Sequence[Row], samples: Path) -> Figure | None:
    """Figure 7: samples of each class from the same noise, small models left, large patches on top.

    Args:
        rows: The rows of the results.
        samples: Folder of the samples that the study kept, in files named by `MeasurementKey.name`.
    """
    chosen = last_checkpoint(rows)
    files = {row.model: samples / f"{row.key.name}.npz" for row in reversed(chosen)}
    images = {model: np.load(file)["arr_0"] for model, file in files.items() if file.is_file()}
    if not images:
        return None
    figure, axes = new_figure(len(SIZES), len(PATCHES), width=2.6, height=1.3)
    for axis, (patch, size) in zip(axes, product(PATCHES, SIZES), strict=True):
        axis.set_axis_off()
        if (drawn := images.get(f"{size}/{patch}")) is not None:
            halves = np.split(drawn[:10], 2)  # ten classes in two rows
            axis.imshow(np.concatenate([np.concatenate(list(half), axis=1) for half in halves]).squeeze(), cmap="gray")
            axis.set_title(f"{size}/{patch}", fontsize=8)
    figure.suptitle(f"{describe_rows(chosen).partition(' images')[0]} images: the same noise", fontsize=9)
    return figure
