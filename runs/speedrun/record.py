"""The record of `runs/speedrun`: which change of the recipe reaches the same distance with fewer images.

python runs/speedrun/record.py                                     print the table that README.md holds
python runs/speedrun/record.py collect out/speedrun/*/results.csv  add measured rows to results.csv
python runs/speedrun/record.py plot docs/images/speedrun.png       draw distances against images and CPU seconds
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dit_hf.analysis import Row, read_rows
from dit_hf.analysis.figures.style import use_logarithmic_axis
from dit_hf.analysis.record import mean_curve, reach
from dit_hf.analysis.results import REAL, write_rows
from dit_hf.study.recipe import Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
MODELS = ("B/2", "L/4", "S/4", "XL/2")  # the first two are those of the figure of merit
GOAL_IMAGES = 128_000  # of the paper's recipe; its distance then is the target
PAPER = "sample, AdamW "  # how the text of a recipe without additions begins
PAPER_COMMAS = Recipe().summary.count(",")  # an addition brings one more
EARLY = 32_000

Trainings = dict[tuple[str, str], list[list[Row]]]  # (recipe, model) -> rows of each seed


def trainings(rows: Iterable[Row]) -> Trainings:
    """Group rows by recipe and model, and in each by seed."""
    seeds: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.model != REAL and row.block_type == "adaln_zero" and row.num_samples == 1000 and row.guidance_scale == 1:
            seeds.setdefault((row.recipe, row.model, row.seed), []).append(row)
    grouped: Trainings = {}
    for (recipe, model, _), group in sorted(seeds.items(), key=lambda item: item[0]):
        grouped.setdefault((recipe, model), []).append(group)
    return grouped


def names() -> dict[str, tuple[str, str]]:
    """Return the name of each recipe's file and whether it was kept, by the text of the recipe in the rows."""
    found = {}
    for file in sorted((HERE / "recipes").glob("*.yaml")):
        kept = next(line for line in file.read_text().splitlines() if line.startswith("# Kept: "))
        found[Recipe.read(file).summary] = (file.stem, kept.removeprefix("# Kept: "))
    return found


def distance_at(curve: list[Row], images: int, column: str = "distance") -> float | None:
    """Return a distance after a number of images, or None if it was not measured."""
    return next((value for row in curve if row.images_seen == images and (value := getattr(row, column)) > 0), None)


def best_paper_recipe(grouped: Trainings, model: str) -> list[Row]:
    """Return the mean curve of the recipe without additions that is the best after 128,000 images, of two seeds."""
    curves = [
        mean_curve(seeds)
        for (recipe, each), seeds in grouped.items()
        if each == model and recipe.startswith(PAPER) and recipe.count(",") == PAPER_COMMAS and len(seeds) > 1
    ]
    return min(curves, key=lambda curve: distance_at(curve, GOAL_IMAGES) or math.inf, default=[])


def line(seeds: list[list[Row]], best: list[Row], name: str, kept: str) -> tuple[float, str]:
    """Return the images that a recipe needs, and its line of the table.

    Args:
        seeds: Rows of each seed.
        best: Mean curve of the paper's recipe, whose last distances are the targets.
        name: Name of the recipe.
        kept: Whether the change was kept.
    """
    curve = mean_curve(seeds)
    target, second = (distance_at(best, GOAL_IMAGES, column) for column in ("distance", "second_distance"))
    reached = reach(curve, target) if target else None
    again = reach(curve, second, "second_distance") if second else None
    early, last = distance_at(curve, EARLY), curve[-1]
    cells = [
        seeds[0][0].model,
        f"{name} (sets the target, {target:.2f})" if best and target and last.recipe == best[0].recipe else name,
        " ".join(str(group[0].seed) for group in seeds),
        f"{early:.2f}" if early else "not measured",
        f"{last.distance:.2f} ({last.images_seen:,})",
        f"{reached.images:,.0f}" if reached else "not reached",
        f"{reached.images / GOAL_IMAGES:.2f}" if reached else "",
        f"{reached.cpu_seconds:.0f}" if reached and reached.cpu_seconds > 0 else "not counted",
        f"{again.images:,.0f}" if again else "not reached" if second else "not measured",
        kept,
        " ".join(sorted({row.commit[:10] for group in seeds for row in group})),
    ]
    return reached.images if reached else math.inf, "| " + " | ".join(cells) + " |"


def table(rows: list[Row]) -> str:
    """Return the table of the record, a line for each recipe and model that was measured, the fastest first."""
    grouped, named = trainings(rows), names()
    lines = [
        "| model | recipe | seeds | distance after 32,000 | distance at the end (images) | images to the target | "
        "of 128,000 | CPU s to the target | images by the second extractor | kept | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        best = best_paper_recipe(grouped, model)
        lines_of_model = [
            line(seeds, best, *named.get(recipe, (recipe, "not decided yet")))
            for (recipe, each), seeds in grouped.items()
            if each == model
        ]
        lines += [text for _, text in sorted(lines_of_model)]
    return "\n".join(lines)


def measured(row: Row) -> int:
    """Return how many of the two later measurements a row has: the second distance, and CPU seconds."""
    return bool(row.second_extractor) + (not math.isnan(row.train_cpu_seconds))


def collect(files: Iterable[Path]) -> int:
    """Add rows to the record, also in the place of rows that were measured less; return their number."""
    record = {(row.recipe, row.key): row for row in read_rows(RESULTS)}
    num_new = 0
    for row in (row for file in files for row in read_rows(file)):
        known = record.get((row.recipe, row.key))
        if known is None or measured(row) > measured(known):
            record[row.recipe, row.key] = row
            num_new += 1
    write_rows(RESULTS, record.values())
    return num_new


def plot(rows: list[Row]) -> Figure:
    """Draw distances against images and CPU seconds: a row of panels for each model, a colour for each recipe."""
    grouped, named = trainings(rows), names()
    label_of = {recipe: named.get(recipe, (recipe, ""))[0] for recipe, model in grouped if model in MODELS[:2]}
    recipes = sorted(label_of, key=label_of.__getitem__)
    looks = {recipe: {"color": f"C{k % 10}", "marker": "os^v"[k // 10 % 4]} for k, recipe in enumerate(recipes)}
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    for panels, model in zip(figure.subplots(2, 2), MODELS[:2], strict=True):
        target = distance_at(best_paper_recipe(grouped, model), GOAL_IMAGES)
        curves = {recipe: mean_curve(seeds) for (recipe, each), seeds in grouped.items() if each == model}
        for axis, column in zip(panels, ("images_seen", "train_cpu_seconds"), strict=True):
            for recipe, curve in curves.items():
                x = [getattr(row, column) for row in curve]  # not a number, and so not drawn, where it was not counted
                axis.plot(x, [row.distance for row in curve], markersize=5, label=label_of[recipe], **looks[recipe])
            if target:
                axis.axhline(target, color="black", linewidth=0.8, linestyle=":")
            axis.set(xscale="log", ylabel="Fréchet distance", title=model)
            axis.set_xlabel("images seen" if column == "images_seen" else "CPU seconds of training")
            use_logarithmic_axis(axis)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:,g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(True, color="0.9")
    shown = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [shown[label] for label in sorted(shown)], sorted(shown), loc="outside lower center", ncols=5, fontsize=8
    )
    return figure


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            print(table(read_rows(RESULTS)))
        case ["collect", *files]:
            print(f"{collect(map(Path, files))} new rows in {RESULTS}")
        case ["plot", file]:
            plot(read_rows(RESULTS)).savefig(file, dpi=120)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
