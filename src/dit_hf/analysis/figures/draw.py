"""Every figure of a study, from its file of results into a folder of PNG files."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..results import Row, read_rows
from ..selection import MODELS, trained
from .compute import bubbles, compute_and_distance, compute_and_other_metrics, other_models
from .sampling import guidance, sample_grid, sampling_compute
from .training import blocks, training_compute, training_curves

logger = logging.getLogger(__name__)

# name of the file -> function of the rows and of whether to draw the paper's numbers beside them
FIGURES: dict[str, Callable[[Sequence[Row], bool], Figure | None]] = {
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
    """Draw every figure that the results have rows for; log a warning if a model has no place in the figures.

    Args:
        results: CSV file of `dit-hf study`.
        output: Folder for the PNG files.
        samples: The study's folder of samples. None leaves out the grid of samples (figure 7).
        quoted: Whether to draw the paper's own numbers beside the results.

    Returns:
        The files, and the names of the figures that lack rows.

    Raises:
        ValueError: If there are no rows of models, or a row cannot be read.
    """
    rows = read_rows(results)
    if unknown := sorted({row.model for row in trained(rows)} - set(MODELS)):
        logger.warning(f"{results}: no figure shows {', '.join(unknown)}; the figures know {', '.join(MODELS)}")
        rows = [row for row in rows if row.model not in unknown]
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
