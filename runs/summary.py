"""The numbers of docs/reproduction.md from a study's rows: python runs/summary.py runs/results/fashion_mnist.csv."""

import sys
from math import isfinite
from pathlib import Path
from statistics import mean

from dit_hf.analysis import read_rows
from dit_hf.analysis.results import Row
from dit_hf.analysis.selection import by_model, log_correlation, trained

METRICS = ("distance", "second_distance", "class_agreement", "precision", "recall", "train_loss")


def print_sizes(rows: list[Row]) -> None:
    """Means over seeds of the models, and correlations with the logarithms of compute and parameters."""
    models = by_model(row for row in rows if row.block_type == "adaln_zero")
    print("  ", *(f"{model} {mean(row.distance for row in group):.1f}" for model, group in models.items()))
    for metric in METRICS if len(models) > 2 else ():
        means = [mean(getattr(row, metric) for row in group) for group in models.values()]
        if not all(isfinite(each) and each for each in means):  # the second distance was not measured
            continue
        r = (
            log_correlation([getattr(group[0], by) for group in models.values()], means)
            for by in ("gmacs", "parameters")
        )
        print("   {}: r = {:.2f} with multiply-adds, {:.2f} with parameters".format(metric, *r))


def print_blocks(rows: list[Row]) -> None:
    """Each design of the block, where there are several: distances, error and share of the asked class by seed."""
    others = {row.model for row in rows if row.block_type != "adaln_zero"}
    for row in rows:
        if row.model in others:
            name, share, error = f"{row.block_type}, seed {row.seed}", row.class_agreement, row.train_loss
            second = f", second distance {row.second_distance:.0f}" if row.second_distance > 0 else ""
            print(f"   {name}: {row.distance:.2f}, error {error:.3f}, share {share:.2f}{second}")


rows = trained(read_rows(Path(sys.argv[1])))
for key in sorted({(row.images_seen, row.num_samples, row.num_steps, row.guidance_scale) for row in rows}):
    chosen = [row for row in rows if (row.images_seen, row.num_samples, row.num_steps, row.guidance_scale) == key]
    print("{} images seen, {} samples, {} steps, guidance {:g}".format(*key))
    print_sizes(chosen)
    print_blocks(chosen)
