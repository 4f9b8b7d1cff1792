"""Figures of quality against compute and size, at one checkpoint (figures 2, 8 and 12 of the paper).

Each function takes the rows of a study, and returns None if the rows do not suffice for the figure.
"""

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from ...configuration_dit import PAPER_SIZES, PATCHES, SIZES
from ..quoted import CORRELATIONS, FIDS_400K, GMACS_OTHERS, IMAGENET_256
from ..results import Row
from ..selection import Point, by_model, last_checkpoint, log_correlation, points
from .style import (
    DISTANCE,
    GMACS,
    METRICS,
    PATCH_COLOURS,
    describe_rows,
    draw_floor,
    draw_legend,
    draw_models,
    new_figure,
    size_and_patch,
    start_at_zero,
)

PAPER_GMACS = {model: PAPER_SIZES[f"DiT-{model}"].gmacs for model in FIDS_400K}


def _draw_bubbles(axis: Axes, values: dict[str, tuple[float, float]]) -> None:
    """Draw each model's multiply-adds (as an area) and distance. Patches stand side by side: some are nearly equal."""
    largest = max(gmacs for gmacs, _ in values.values())
    for model, (gmacs, value) in values.items():
        size, patch = size_and_patch(model)
        x = SIZES.index(size) + 0.27 * (PATCHES.index(patch) - 1)
        area = 900 * gmacs / largest
        axis.scatter(x, value, s=area, color=PATCH_COLOURS[patch], alpha=0.6, edgecolor="0.2", linewidth=0.5)
        above = (0, 2 + math.sqrt(area) / 2)
        axis.annotate(f"/{patch}", (x, value), above, textcoords="offset points", ha="center", fontsize=7)
    axis.set_xticks(range(len(SIZES)), SIZES)
    axis.set_xlim(-0.6, len(SIZES) - 0.4)
    axis.set_xlabel("size; number: patch; area: multiply-adds")
    start_at_zero(axis)


def bubbles(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 2 left: distance by size and patch; the area of a bubble is the model's multiply-adds."""
    chosen = last_checkpoint(rows)
    if not chosen:
        return None
    figure, axes = new_figure(1 + quoted)
    models = by_model(chosen).items()
    _draw_bubbles(axes[0], {model: (group[0].gmacs, points(group, "images_seen")[0].y) for model, group in models})
    axes[0].set_ylabel(DISTANCE)
    axes[0].set_title(describe_rows(chosen), fontsize=9)
    if quoted:
        _draw_bubbles(axes[1], {model: (PAPER_GMACS[model], fid) for model, fid in FIDS_400K.items()})
        axes[1].set_ylabel("FID-50K")
        axes[1].set_title("quoted from the paper: ImageNet, 400k steps", fontsize=9)
    return figure


def other_models(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 2 right: Gflops and guided FID of DiT and of U-Nets; every number is quoted."""
    del rows
    if not quoted:
        return None
    guided = {"ADM-G": "ADM", "ADM-G, ADM-U": "ADM-U", "LDM-4-G (cfg=1.50)": "LDM-4"}
    gmacs = {result: GMACS_OTHERS[model] for result, model in guided.items()}
    gmacs["DiT-XL/2-G (cfg=1.50)"] = PAPER_SIZES["DiT-XL/2"].gmacs
    fids = {result.model: result.fid for result in IMAGENET_256}
    figure, (axis,) = new_figure(1, width=5)
    for name, value in gmacs.items():
        colour = "#D55E00" if name.startswith("DiT") else "#0072B2"
        axis.scatter(value, fids[name], s=60, color=colour)
        axis.annotate(f"{name}\n{value:g}", (value, fids[name]), textcoords="offset points", xytext=(8, -4), fontsize=8)
    axis.set_xscale("log")
    axis.set(
        title="quoted from the paper: ImageNet 256 px", xlabel="Gflops of a forward", ylabel="FID-50K", xlim=(60, 4000)
    )
    start_at_zero(axis)
    return figure


def _draw_quoted_models(axis: Axes) -> None:
    draw_models(axis, {model: (PAPER_GMACS[model], Point(0, fid, fid, fid)) for model, fid in FIDS_400K.items()})
    r = log_correlation(list(PAPER_GMACS.values()), list(FIDS_400K.values()))
    axis.set(xlabel=GMACS, ylabel="FID-50K")
    axis.set_title(f"quoted from the paper: ImageNet, 400k steps\nr = {r:.2f}", fontsize=9)
    start_at_zero(axis)


def compute_and_distance(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 8: distance against the multiply-adds of a forward, and against the number of parameters."""
    chosen = last_checkpoint(rows)
    models = by_model(chosen)
    if len(models) < 3:
        return None
    figure, axes = new_figure(2 + quoted)
    means = {model: points(group, "images_seen")[0] for model, group in models.items()}
    for axis, column, label in zip(axes, ("gmacs", "parameters"), (GMACS, "parameters"), strict=False):
        x = {model: getattr(group[0], column) for model, group in models.items()}
        draw_models(axis, {model: (x[model], means[model]) for model in models})
        r = log_correlation(list(x.values()), [point.y for point in means.values()])
        axis.set(xlabel=label, ylabel=DISTANCE)
        axis.set_title(f"{describe_rows(chosen)}\nr = {r:.2f}", fontsize=9)
        start_at_zero(axis)
        draw_floor(axis, rows, chosen[0].num_samples)
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
    pair: list[Artist] = []
    if {"S/2", "B/4"} <= set(means):  # their multiply-adds are nearly equal, B/4 has four times the parameters
        ends = [(models[model][0].gmacs, means[model].y) for model in ("S/2", "B/4")]
        pair += axes[0].plot(*zip(*ends, strict=True), color="0.4", linewidth=1, linestyle="--", label="S/2 and B/4")
    draw_legend(axes[0], *pair)
    if quoted:
        _draw_quoted_models(axes[2])
    return figure


def compute_and_other_metrics(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 12 right: the other metrics, and the loss of the training, against the multiply-adds of a forward."""
    chosen = last_checkpoint(rows)
    models = by_model(chosen)
    if len(models) < 3:
        return None
    names = [*list(METRICS)[1:], "train_loss"]
    figure, axes = new_figure(2, 2)
    for axis, name in zip(axes, names, strict=True):
        means = {model: (group[0].gmacs, points(group, "images_seen", name)[0]) for model, group in models.items()}
        draw_models(axis, means)
        r = log_correlation([gmacs for gmacs, _ in means.values()], [point.y for _, point in means.values()])
        in_the_paper = f" (the paper's: {CORRELATIONS[name]:.2f})" if quoted and name in CORRELATIONS else ""
        label = METRICS.get(name, "mean squared error in training")
        axis.set(xlabel=GMACS, ylabel=label, title=f"r = {r:.2f}{in_the_paper}")
    draw_legend(axes[0])
    figure.suptitle(describe_rows(chosen))
    return figure
