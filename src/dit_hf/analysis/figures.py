"""The paper's figures from a file of results, with the paper's own numbers beside them, marked as quoted.

Colours are those of Okabe & Ito, which the colour-blind tell apart; sizes also differ in their marker.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ..configuration_dit import PAPER_SIZES
from .flops import TRAINING_FACTOR
from .quoted import BLOCKS_400K, CORRELATIONS, FIDS_400K, GMACS_OTHERS, IMAGENET_256
from .results import Row, read_rows
from .selection import (
    PATCHES,
    SIZES,
    Point,
    by_model,
    floor,
    last_checkpoint,
    log_correlation,
    over_training,
    points,
    sizes_over_training,
    trained,
)

PATCH_COLOURS = {8: "#0072B2", 4: "#E69F00", 2: "#D55E00"}
SIZE_COLOURS = {"S": "#56B4E9", "B": "#009E73", "L": "#CC79A7", "XL": "#000000"}
MARKERS = {"S": "o", "B": "s", "L": "^", "XL": "D"}
BLOCK_STYLES = {  # name, colour, marker
    "in_context": ("in-context", "#56B4E9", "o"),
    "cross_attention": ("cross-attention", "#009E73", "s"),
    "adaln": ("adaLN", "#E69F00", "^"),
    "adaln_zero": ("adaLN-Zero", "#D55E00", "D"),
}
DISTANCE = "Fréchet distance"
GMACS = "multiply-adds of a forward / 10⁹"
METRICS = {
    "distance": DISTANCE,
    "class_agreement": "share of the asked class",
    "precision": "precision",
    "recall": "recall",
}

Draw = Callable[[Sequence[Row], bool], Figure | None]


def _figure(
    columns: int, rows: int = 1, width: float = 4.2, height: float = 3.6, **options: Any
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(True, which="major", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def _size_and_patch(model: str) -> tuple[str, int]:
    size, patch = model.split("/")
    return size, int(patch)


def _from_zero(axis: Axes) -> None:
    """Distances start at none, and leave room above the worst."""
    axis.set_ylim(0, 1.08 * axis.dataLim.y1)


def _logarithmic(axis: Axes) -> None:
    """Distances over orders of magnitude, whose ratios can be seen."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _thousands(axis: Axes) -> None:
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")


def _line(axis: Axes, found: Sequence[Point], label: str, colour: str, marker: str) -> None:
    """A line through the means, with the range over seeds at each."""
    x, y = [point.x for point in found], [point.y for point in found]
    axis.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
    axis.vlines(x, [point.low for point in found], [point.high for point in found], color=colour, linewidth=1.5)


def _floor_line(axis: Axes, rows: Sequence[Row], num_samples: int) -> None:
    value = floor(rows, num_samples)
    if value:
        axis.axhline(value, color="0.5", linewidth=1, linestyle=":")
        where = ("axes fraction", "data")
        axis.annotate("held-out real images", (0.02, value), xycoords=where, fontsize=7, va="bottom", color="0.4")


def _subject(rows: Sequence[Row]) -> str:
    """What a title has to say: the data, how far trained, how many samples and seeds."""
    images, samples = ({getattr(row, name) for row in rows} for name in ("images_seen", "num_samples"))
    seeds = sorted(Counter(key._replace(seed=0) for key in {row.key for row in rows}).values())  # of each point
    few = f"{seeds[0]} to " if seeds[0] < seeds[-1] else ""
    after = f"after {max(images) / 1000:g}k images, " if len(images) == 1 else ""
    return f"{rows[0].dataset}, {after}{max(samples):,} samples, {few}{seeds[-1]} seed{'s' * (seeds[-1] > 1)}"


def _key(axis: Axes, *others: Artist, **options: Any) -> None:
    """Say what markers and colours stand for: names beside the points would lie on each other at equal compute."""
    sizes = [Line2D([], [], color="0.3", marker=MARKERS[size], linestyle="", label=size) for size in SIZES]
    patches = [Patch(color=PATCH_COLOURS[patch], label=f"patch {patch}") for patch in PATCHES]
    axis.legend(handles=[*sizes, *patches, *others], frameon=False, fontsize=7, **options)


def _scatter(axis: Axes, found: dict[str, tuple[float, Point]]) -> None:
    """Models by compute: colour is the patch, the marker the size."""
    for model, (gmacs, point) in found.items():
        size, patch = _size_and_patch(model)
        error = [[point.y - point.low], [point.high - point.y]]
        axis.errorbar(gmacs, point.y, error, fmt=MARKERS[size], color=PATCH_COLOURS[patch], markersize=7, capsize=2)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.12)


def _quoted_scatter(axis: Axes) -> None:
    gmacs = {model: PAPER_SIZES[f"DiT-{model}"].gmacs for model in FIDS_400K}
    _scatter(axis, {model: (gmacs[model], Point(0, fid, fid, fid)) for model, fid in FIDS_400K.items()})
    r = log_correlation(list(gmacs.values()), list(FIDS_400K.values()))
    axis.set(title=f"quoted from the paper: ImageNet, 400k steps\nr = {r:.2f}", xlabel=GMACS, ylabel="FID-50K")
    _from_zero(axis)


def bubbles(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 2 left: distance by size and patch, the area of a bubble its compute."""
    found = last_checkpoint(rows)
    if not found:
        return None
    figure, axes = _figure(1 + quoted)

    def draw(axis: Axes, values: dict[str, tuple[float, float]]) -> None:
        largest = max(gmacs for gmacs, _ in values.values())
        for model, (gmacs, value) in values.items():
            size, patch = _size_and_patch(model)
            place = SIZES.index(size) + 0.27 * (PATCHES.index(patch) - 1)  # beside each other: some are nearly equal
            area = 900 * gmacs / largest
            axis.scatter(place, value, s=area, color=PATCH_COLOURS[patch], alpha=0.6, edgecolor="0.2", linewidth=0.5)
            above = (0, 2 + math.sqrt(area) / 2)
            axis.annotate(f"/{patch}", (place, value), above, textcoords="offset points", ha="center", fontsize=7)
        axis.set_xticks(range(len(SIZES)), SIZES)
        axis.set_xlim(-0.6, len(SIZES) - 0.4)
        _from_zero(axis)

    draw(
        axes[0],
        {model: (group[0].gmacs, points(group, "images_seen")[0].y) for model, group in by_model(found).items()},
    )
    axes[0].set(ylabel=DISTANCE, xlabel="size; number: patch; area: multiply-adds")
    axes[0].set_title(_subject(found), fontsize=9)
    if quoted:
        draw(axes[1], {model: (PAPER_SIZES[f"DiT-{model}"].gmacs, fid) for model, fid in FIDS_400K.items()})
        axes[1].set(ylabel="FID-50K", xlabel="size; number: patch; area: multiply-adds")
        axes[1].set_title("quoted from the paper: ImageNet, 400k steps", fontsize=9)
    return figure


def other_models(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 2 right: Gflops and guided FID of DiT and the U-Nets, quoted whole."""
    del rows
    if not quoted:
        return None
    guided = {"ADM-G": "ADM", "ADM-G, ADM-U": "ADM-U", "LDM-4-G (cfg=1.50)": "LDM-4"}
    gmacs = {result: GMACS_OTHERS[model] for result, model in guided.items()}
    gmacs["DiT-XL/2-G (cfg=1.50)"] = PAPER_SIZES["DiT-XL/2"].gmacs
    fids = {result.model: result.fid for result in IMAGENET_256}
    figure, (axis,) = _figure(1, width=5)
    for name, value in gmacs.items():
        colour = "#D55E00" if name.startswith("DiT") else "#0072B2"
        axis.scatter(value, fids[name], s=60, color=colour)
        axis.annotate(f"{name}\n{value:g}", (value, fids[name]), textcoords="offset points", xytext=(8, -4), fontsize=8)
    axis.set_xscale("log")
    axis.set(
        title="quoted from the paper: ImageNet 256 px", xlabel="Gflops of a forward", ylabel="FID-50K", xlim=(60, 4000)
    )
    _from_zero(axis)
    return figure


def blocks(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 5: the four designs of the block over training."""
    others = [row.model for row in over_training(rows) if row.block_type != "adaln_zero"]
    if not others:
        return None
    found = [row for row in over_training(rows) if row.model == others[0]]
    figure, axes = _figure(1 + quoted)
    for block, (name, colour, marker) in BLOCK_STYLES.items():
        if group := [row for row in found if row.block_type == block]:
            _line(axes[0], points(group, "images_seen"), name, colour, marker)
    axes[0].set(title=f"{others[0]}: {_subject(found)}", xlabel="images seen in training", ylabel=DISTANCE)
    axes[0].set_xscale("log")
    axes[0].set_xticks(sorted({row.images_seen for row in found}))
    axes[0].minorticks_off()
    _thousands(axes[0])
    _logarithmic(axes[0])
    axes[0].legend(frameon=False)
    if quoted:
        for position, (block, result) in enumerate(BLOCKS_400K.items()):
            axes[1].bar(position, result.fid, color=BLOCK_STYLES[block][1])
            axes[1].annotate(f"{result.fid:.2f}", (position, result.fid), ha="center", va="bottom", fontsize=8)
        axes[1].set_xticks(range(len(BLOCK_STYLES)), [name for name, *_ in BLOCK_STYLES.values()], fontsize=8)
        axes[1].set(title="quoted from the paper: XL/2, 400k steps", ylabel="FID-50K")
    return figure


def training_curves(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 6: the twelve models over training, by size with the patch held, and by patch with the size held."""
    del quoted  # the paper prints no curves in numbers
    found = sizes_over_training(rows)
    if not found:
        return None
    figure, axes = _figure(4, 2, width=3.2, height=3, sharey=True)
    models = by_model(found)
    panels = [(f"patch {patch}", [f"{size}/{patch}" for size in SIZES]) for patch in PATCHES]
    panels += [(f"size {size}", [f"{size}/{patch}" for patch in PATCHES]) for size in SIZES]
    axes[3].set_visible(False)
    ticks = sorted({row.images_seen for row in found})
    for axis, (title, names) in zip([*axes[:3], *axes[4:]], panels, strict=True):
        for model in filter(models.get, names):
            size, patch = _size_and_patch(model)
            colour = SIZE_COLOURS[size] if title.startswith("patch") else PATCH_COLOURS[patch]
            _line(axis, points(models[model], "images_seen"), model, colour, MARKERS[size])
        axis.set(title=title, xscale="log", xlabel="images seen in training")
        axis.set_xticks(ticks)
        axis.minorticks_off()
        _thousands(axis)
        axis.tick_params(labelleft=True)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel(DISTANCE)
    axes[4].set_ylabel(DISTANCE)
    _logarithmic(axes[0])
    figure.suptitle(_subject(found))
    return figure


def compute_and_distance(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 8: distance against the compute of a forward, and against parameters, which say less."""
    found = last_checkpoint(rows)
    models = by_model(found)
    if len(models) < 3:
        return None
    figure, axes = _figure(2 + quoted)
    means = {model: points(group, "images_seen")[0] for model, group in models.items()}
    for axis, column, label in zip(axes, ("gmacs", "parameters"), (GMACS, "parameters"), strict=False):
        x = {model: getattr(group[0], column) for model, group in models.items()}
        _scatter(axis, {model: (x[model], means[model]) for model in models})
        r = log_correlation(list(x.values()), [point.y for point in means.values()])
        axis.set(xlabel=label, ylabel=DISTANCE)
        axis.set_title(f"{_subject(found)}\nr = {r:.2f}", fontsize=9)
        _from_zero(axis)
        _floor_line(axis, rows, found[0].num_samples)
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
    equal: list[Artist] = []
    if {"S/2", "B/4"} <= set(means):  # equal compute, four times the parameters
        pair = [(models[model][0].gmacs, means[model].y) for model in ("S/2", "B/4")]
        equal += axes[0].plot(*zip(*pair, strict=True), color="0.4", linewidth=1, linestyle="--", label="S/2 and B/4")
    _key(axes[0], *equal)
    if quoted:
        _quoted_scatter(axes[2])
        axes[2].title.set_fontsize(9)
    return figure


def compute_and_other_metrics(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 12 right: the other metrics against the compute of a forward; and the loss of the training."""
    found = last_checkpoint(rows)
    models = by_model(found)
    if len(models) < 3:
        return None
    names = [*list(METRICS)[1:], "train_loss"]
    figure, axes = _figure(2, 2)
    for axis, name in zip(axes, names, strict=True):
        means = {model: (group[0].gmacs, points(group, "images_seen", name)[0]) for model, group in models.items()}
        _scatter(axis, means)
        r = log_correlation([gmacs for gmacs, _ in means.values()], [point.y for _, point in means.values()])
        papers = f" (the paper's: {CORRELATIONS[name]:.2f})" if quoted and name in CORRELATIONS else ""
        axis.set(xlabel=GMACS, ylabel=METRICS.get(name, "mean squared error in training"), title=f"r = {r:.2f}{papers}")
    _key(axes[0])
    figure.suptitle(_subject(found))
    return figure


def training_compute(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 9: distance against total training compute, 3 x forward x images."""
    del quoted
    found = sizes_over_training(rows)
    if not found:
        return None
    figure, (axis,) = _figure(1, width=5.6, height=4.2)
    for model, group in by_model(found).items():
        size, patch = _size_and_patch(model)
        factor = TRAINING_FACTOR * group[0].gmacs
        scaled = [point._replace(x=point.x * factor) for point in points(group, "images_seen")]
        _line(axis, scaled, model, PATCH_COLOURS[patch], MARKERS[size])
    axis.set(
        title=_subject(found),
        xscale="log",
        xlabel="training compute: 3 x multiply-adds x images / 10⁹",
        ylabel=DISTANCE,
    )
    _key(axis, ncols=2)
    _from_zero(axis)
    _floor_line(axis, rows, found[0].num_samples)
    return figure


def sampling_compute(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Figure 10: sampling compute against distance; more steps do not replace a larger model."""
    del quoted
    counts: dict[tuple[int, int, int], set[int]] = {}
    unguided = [row for row in trained(rows) if row.guidance_scale == 1 and row.block_type == "adaln_zero"]
    for row in unguided:
        counts.setdefault((row.images_seen, row.num_samples, row.seed), set()).add(row.num_steps)
    chosen = max(counts, key=lambda group: len(counts[group]), default=None)
    if chosen is None or len(counts[chosen]) < 2:
        return None
    found = [row for row in unguided if (row.images_seen, row.num_samples, row.seed) == chosen]
    figure, (axis,) = _figure(1, width=5.6, height=4.2)
    varied = {model: group for model, group in by_model(found).items() if len({row.num_steps for row in group}) > 1}
    for model, group in varied.items():
        size, _ = _size_and_patch(model)
        scaled = [point._replace(x=point.x * group[0].gmacs) for point in points(group, "num_steps")]
        _line(axis, scaled, model, SIZE_COLOURS[size], MARKERS[size])
        for row in group if model == next(iter(varied)) else []:  # the others have the same
            at = (row.num_steps * row.gmacs, row.distance)
            axis.annotate(str(row.num_steps), at, (0, 6), textcoords="offset points", fontsize=6)
    axis.set(
        title=_subject(found), xscale="log", xlabel="sampling compute: multiply-adds x steps / 10⁹", ylabel=DISTANCE
    )
    _from_zero(axis)
    axis.legend(frameon=False, title=f"numbers at {next(iter(varied))}: steps")
    return figure


def guidance(rows: Sequence[Row], quoted: bool) -> Figure | None:
    """Metrics against the scale of guidance, and the recall of LDM-4 and DiT-XL/2 as the paper prints it."""
    guided = [row for row in trained(rows) if row.guidance_scale > 1]
    if not guided:
        return None
    same = Counter(row.key._replace(guidance_scale=0) for row in guided).most_common(1)[0][0]  # with the most scales
    found = [row for row in trained(rows) if row.key._replace(guidance_scale=0) == same]
    figure, axes = _figure(3, 2, width=3.2, height=3)
    beside = axes[len(METRICS)]
    beside.set_visible(quoted)
    axes[-1].set_visible(False)
    for axis, (name, label) in zip(axes, METRICS.items(), strict=False):
        _line(axis, points(found, "guidance_scale", name), same.model, "#0072B2", "o")
        axis.set(xlabel="scale of guidance", ylabel=label)
    if quoted:
        for prefix, colour, marker in (("LDM-4", "#0072B2", "s"), ("DiT-XL/2", "#D55E00", "D")):
            recalls = [result.recall or 0.0 for result in IMAGENET_256 if result.model.startswith(prefix)]
            beside.plot([1, 1.25, 1.5], recalls, color=colour, marker=marker, label=prefix)
        beside.set_title("quoted from the paper: ImageNet 256 px", fontsize=8)
        beside.set(xlabel="scale of guidance", ylabel="recall")
        beside.legend(frameon=False)
    figure.suptitle(f"{same.model}: {_subject(found)}")
    return figure


def sample_grid(rows: Sequence[Row], samples: Path) -> Figure | None:
    """Figure 7: every model's samples of each class from the same noise, small models left, large patches on top.

    Args:
        rows: of the results.
        samples: the folder of the files that the study kept, by `Key.name`.
    """
    files = {row.model: samples / f"{row.key.name}.npz" for row in reversed(last_checkpoint(rows))}
    found = {model: np.load(file)["arr_0"] for model, file in files.items() if file.is_file()}
    if not found:
        return None
    figure, axes = _figure(len(SIZES), len(PATCHES), width=2.6, height=1.3)
    for axis, (patch, size) in zip(axes, product(PATCHES, SIZES), strict=True):
        axis.set_axis_off()
        if (images := found.get(f"{size}/{patch}")) is not None:
            halves = np.split(images[:10], 2)  # ten classes in two rows
            axis.imshow(np.concatenate([np.concatenate(list(half), axis=1) for half in halves]).squeeze(), cmap="gray")
            axis.set_title(f"{size}/{patch}", fontsize=8)
    figure.suptitle(f"{_subject(last_checkpoint(rows)).partition(' images')[0]} images: the same noise", fontsize=9)
    return figure


FIGURES: dict[str, Draw] = {
    "figure_2_left": bubbles,
    "figure_2_right": other_models,
    "figure_5": blocks,
    "figure_6": training_curves,
    "figure_8": compute_and_distance,
    "figure_8_other_metrics": compute_and_other_metrics,
    "figure_9": training_compute,
    "figure_10": sampling_compute,
    "guidance": guidance,
}


def draw_all(
    results: Path, output: Path, *, samples: Path | None = None, quoted: bool = True
) -> tuple[list[Path], list[str]]:
    """Draw every figure that the results have rows for.

    Args:
        results: a CSV file of `dit-hf study`.
        output: a folder for the PNG files.
        samples: the study's folder of samples; None draws no grid of them.
        quoted: whether the paper's own numbers stand beside.

    Returns:
        The files, and the names of the figures that lack rows.

    Raises:
        ValueError: if there are no rows of models, or one cannot be read.
    """
    rows = read_rows(results)
    if not trained(rows):
        raise ValueError(f"{results} holds no measurement of a model: run dit-hf study first")
    output.mkdir(parents=True, exist_ok=True)
    written, lacking = [], []
    figures = {name: draw(rows, quoted) for name, draw in FIGURES.items()}
    if samples is not None:
        figures["figure_7"] = sample_grid(rows, samples)
    for name, figure in figures.items():
        if figure is None:
            lacking.append(name)
            continue
        written.append(output / f"{name}.png")
        figure.savefig(written[-1], metadata={"Software": None})
    return written, lacking
