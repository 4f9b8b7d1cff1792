"""Figures over training: what more images, and more compute, bring (figures 5, 6 and 9 of the paper).

Each function takes the rows of a study, and returns None if the rows do not suffice for the figure.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...configuration_dit import PATCHES, SIZES
from ..flops import TRAINING_FACTOR
from ..quoted import BLOCKS_400K
from ..results import Row
from ..selection import blocks_over_training, by_model, points, sizes_over_training
from .style import (
    BLOCK_STYLES,
    DISTANCE,
    MARKERS,
    PATCH_COLOURS,
    SIZE_COLOURS,
    block_styles,
    describe_rows,
    draw_floor,
    draw_legend,
    draw_line,
    label_in_thousands,
    new_figure,
    size_and_patch,
    start_at_zero,
    use_logarithmic_axis,
)


def _draw_quoted_blocks(axis: Axes) -> None:
    for position, (design, result) in enumerate(BLOCKS_400K.items()):
        axis.bar(position, result.fid, color=BLOCK_STYLES[design].colour)
        axis.annotate(f"{result.fid:.2f}", (position, result.fid), ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(BLOCKS_400K)), [BLOCK_STYLES[design].name for design in BLOCKS_400K], fontsize=8)
    axis.set(title="quoted from the paper: XL/2, 400k steps", ylabel="FID-50K")


def blocks(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 5: the block designs over training, in a panel for each model that was trained with several."""
    models = blocks_over_training(rows)
    if not models:
        return None
    figure, axes = new_figure(len(models) + quoted)
    for axis, (model, group) in zip(axes, models.items(), strict=False):
        for design, style in block_styles(row.block_type for row in group).items():
            draw_line(axis, points([row for row in group if row.block_type == design], "images_seen"), *style)
        axis.set(title=f"{model}: {describe_rows(group)}", xlabel="images seen in training", ylabel=DISTANCE)
        axis.set_xscale("log")
        axis.set_xticks(sorted({row.images_seen for row in group}))
        axis.minorticks_off()
        label_in_thousands(axis)
        use_logarithmic_axis(axis)
        axis.legend(frameon=False)
    if quoted:
        _draw_quoted_blocks(axes[-1])
    return figure


def training_curves(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 6: the twelve models over training; a panel for each patch, then a panel for each size."""
    del quoted  # the paper prints no numbers of these curves
    chosen = sizes_over_training(rows)
    if not chosen:
        return None
    figure, axes = new_figure(4, 2, width=3.2, height=3, sharey=True)
    models = by_model(chosen)
    panels = [(f"patch {patch}", [f"{size}/{patch}" for size in SIZES]) for patch in PATCHES]
    panels += [(f"size {size}", [f"{size}/{patch}" for patch in PATCHES]) for size in SIZES]
    axes[3].set_visible(False)
    ticks = sorted({row.images_seen for row in chosen})
    for axis, (title, names) in zip([*axes[:3], *axes[4:]], panels, strict=True):
        for model in filter(models.get, names):
            size, patch = size_and_patch(model)
            colour = SIZE_COLOURS[size] if title.startswith("patch") else PATCH_COLOURS[patch]
            draw_line(axis, points(models[model], "images_seen"), model, colour, MARKERS[size])
        axis.set(title=title, xscale="log", xlabel="images seen in training")
        axis.set_xticks(ticks)
        axis.minorticks_off()
        label_in_thousands(axis)
        axis.tick_params(labelleft=True)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel(DISTANCE)
    axes[4].set_ylabel(DISTANCE)
    use_logarithmic_axis(axes[0])
    figure.suptitle(describe_rows(chosen))
    return figure


def training_compute(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 9: distance against the compute of the training: 3 x the multiply-adds of a forward x images."""
    del quoted  # the paper prints no numbers of this figure
    chosen = sizes_over_training(rows)
    if not chosen:
        return None
    figure, (axis,) = new_figure(1, width=5.6, height=4.2)
    for model, group in by_model(chosen).items():
        size, patch = size_and_patch(model)
        factor = TRAINING_FACTOR * group[0].gmacs
        means = [point._replace(x=point.x * factor) for point in points(group, "images_seen")]
        draw_line(axis, means, model, PATCH_COLOURS[patch], MARKERS[size])
        end = (means[-1].x, means[-1].y)
        offset = {"L": (-9, -11), "XL": (9, -11)}.get(size, (0, -11))  # the two are close to each other
        if model in ("S/2", "B/2"):  # of equal compute with B/4 and L/4, whose names are below
            offset = (10, 4)
        colour = PATCH_COLOURS[patch]
        axis.annotate(model, end, offset, textcoords="offset points", ha="center", fontsize=8, color=colour)
    axis.set(
        title=describe_rows(chosen),
        xscale="log",
        xlabel="training compute: 3 x multiply-adds x images / 10⁹",
        ylabel=DISTANCE,
    )
    axis.margins(x=0.1)  # room for the name of the last line
    draw_legend(axis, ncols=2)
    start_at_zero(axis)
    draw_floor(axis, rows, chosen[0].num_samples)
    return figure
