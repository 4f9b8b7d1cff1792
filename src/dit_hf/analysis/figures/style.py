"""How the figures look: colours, markers, labels and the elements that several figures share.

The colours are those of Okabe & Ito, which colour-blind readers can tell apart. A colour never stands alone: sizes and
block designs also have a marker each.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from ...configuration_dit import PATCHES, SIZES
from ..results import Row
from ..selection import Point, floor

PATCH_COLOURS = {8: "#0072B2", 4: "#E69F00", 2: "#D55E00"}
SIZE_COLOURS = {"S": "#56B4E9", "B": "#009E73", "L": "#CC79A7", "XL": "#000000"}
MARKERS = {"S": "o", "B": "s", "L": "^", "XL": "D"}


class BlockStyle(NamedTuple):
    """How a figure shows a block design."""

    name: str
    colour: str
    marker: str


BLOCK_STYLES = {
    "in_context": BlockStyle("in-context", "#56B4E9", "o"),
    "cross_attention": BlockStyle("cross-attention", "#009E73", "s"),
    "adaln": BlockStyle("adaLN", "#E69F00", "^"),
    "adaln_zero": BlockStyle("adaLN-Zero", "#D55E00", "D"),
}
OTHER_BLOCK_COLOURS = ("#0072B2", "#CC79A7", "#000000")  # of designs that are not in the paper
OTHER_BLOCK_MARKERS = ("v", "P", "X", "*")

DISTANCE = "Fréchet distance"
GMACS = "multiply-adds of a forward / 10⁹"
METRICS = {  # column of the results -> label of its axis
    "distance": DISTANCE,
    "class_agreement": "share of the asked class",
    "precision": "precision",
    "recall": "recall",
}


def block_styles(block_types: Iterable[str]) -> dict[str, BlockStyle]:
    """Return a style for each block design: the paper's four first, then all others by name.

    A design that is not in `BLOCK_STYLES` is called by its own name. The first twelve such designs look different,
    as three colours and four markers alternate.

    Args:
        block_types: Values of `DiTConfig.block_type`, in any order, repeated or not.
    """
    designs = set(block_types)
    others = sorted(designs - set(BLOCK_STYLES))
    styles = {design: style for design, style in BLOCK_STYLES.items() if design in designs}
    for number, design in enumerate(others):
        colour = OTHER_BLOCK_COLOURS[number % len(OTHER_BLOCK_COLOURS)]
        marker = OTHER_BLOCK_MARKERS[number % len(OTHER_BLOCK_MARKERS)]
        styles[design] = BlockStyle(design.replace("_", "-"), colour, marker)
    return styles


def new_figure(
    columns: int, rows: int = 1, width: float = 4.2, height: float = 3.6, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its panels, row by row.

    Args:
        columns: Number of panels side by side.
        rows: Number of panels above each other.
        width: Width of a panel, in inches.
        height: Height of a panel, in inches.
        **options: Further arguments of `Figure.subplots`.
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(True, which="major", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def size_and_patch(model: str) -> tuple[str, int]:
    """Split the name of a model: "XL/2" gives ("XL", 2)."""
    size, patch = model.split("/")
    return size, int(patch)


def start_at_zero(axis: Axes) -> None:
    """Let the vertical axis begin at 0, and leave room above the largest value."""
    axis.set_ylim(0, 1.08 * axis.dataLim.y1)


def use_logarithmic_axis(axis: Axes) -> None:
    """Make the vertical axis logarithmic, so that equal ratios have equal heights."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def label_in_thousands(axis: Axes) -> None:
    """Write 64000 on the horizontal axis as 64k."""
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")


def draw_line(axis: Axes, means: Sequence[Point], label: str, colour: str, marker: str) -> None:
    """Draw a line through the means, with the range over seeds as a vertical bar at each mean."""
    x, y = [point.x for point in means], [point.y for point in means]
    axis.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
    axis.vlines(x, [point.low for point in means], [point.high for point in means], color=colour, linewidth=1.5)


def draw_models(axis: Axes, means: dict[str, tuple[float, Point]]) -> None:
    """Draw one point for each model; its colour is the patch, its marker the size, its bar the range over seeds.

    Args:
        axis: The panel. Its horizontal axis becomes logarithmic.
        means: Horizontal position, and mean over seeds, of each model.
    """
    for model, (x, point) in means.items():
        size, patch = size_and_patch(model)
        error = [[point.y - point.low], [point.high - point.y]]
        axis.errorbar(x, point.y, error, fmt=MARKERS[size], color=PATCH_COLOURS[patch], markersize=7, capsize=2)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.12)


def draw_floor(axis: Axes, rows: Sequence[Row], num_samples: int) -> None:
    """Draw the distance of as many held-out real images as a dotted line, if the results have it."""
    value = floor(rows, num_samples)
    if value:
        axis.axhline(value, color="0.5", linewidth=1, linestyle=":")
        where = ("axes fraction", "data")
        axis.annotate("held-out real images", (0.02, value), xycoords=where, fontsize=7, va="bottom", color="0.4")


def draw_legend(axis: Axes, *further: Artist, **options: Any) -> None:
    """Explain the markers and colours of the twelve models: names beside the points would overlap at equal compute.

    Args:
        axis: The panel.
        *further: Lines of the panel that the legend names too.
        **options: Further arguments of `Axes.legend`.
    """
    sizes = [Line2D([], [], color="0.3", marker=MARKERS[size], linestyle="", label=size) for size in SIZES]
    patches = [Patch(color=PATCH_COLOURS[patch], label=f"patch {patch}") for patch in PATCHES]
    axis.legend(handles=[*sizes, *patches, *further], frameon=False, fontsize=7, **options)


def describe_rows(rows: Sequence[Row]) -> str:
    """Return what a title has to state: data set, images seen, number of samples, number of seeds of a point."""
    images, samples = ({getattr(row, name) for row in rows} for name in ("images_seen", "num_samples"))
    seeds = sorted(Counter(key._replace(seed=0) for key in {row.key for row in rows}).values())
    fewest = f"{seeds[0]} to " if seeds[0] < seeds[-1] else ""
    after = f"after {max(images) / 1000:g}k images, " if len(images) == 1 else ""
    return f"{rows[0].dataset}, {after}{max(samples):,} samples, {fewest}{seeds[-1]} seed{'s' * (seeds[-1] > 1)}"
