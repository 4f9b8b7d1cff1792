"""`dit-hf plot`: the paper's figures from the results of a study, or trainings side by side."""

from pathlib import Path
from typing import Annotated

import typer

from .entry import Command, app, refuse
from .local_files import check_all_present, check_present


@app.command(
    cls=Command,
    epilog="Example: dit-hf plot runs/results/fashion_mnist.csv --output-dir docs/images/study; "
    "trainings: dit-hf plot out/first out/second",
)
def plot(
    results: Annotated[
        list[Path],
        typer.Argument(
            callback=check_all_present,
            help="File results.csv of dit-hf study; or the folders of one or several trainings.",
            show_default=False,
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("figures"),
    samples: Annotated[
        Path | None,
        typer.Option(
            callback=check_present, help="Folder of the study's samples, for the figure of samples from the same noise."
        ),
    ] = None,
    quoted: Annotated[
        bool | None,
        typer.Option(
            help="Whether to draw the paper's own numbers beside the results, marked as quoted.", show_default="quoted"
        ),
    ] = None,
) -> None:
    """Draw the paper's figures from the results of a study; or the losses and distances of trainings side by side."""
    from ..analysis.figures import compare_runs, draw_all

    if all(path.is_dir() for path in results):
        refuse({"--samples": samples, "--quoted": quoted}, "is for the results of a study: leave it out")
        typer.echo(f"wrote {compare_runs(results, output_dir)}")
        return
    if len(results) > 1:
        raise ValueError(f"{', '.join(map(str, results))}: pass one results.csv, or folders of trainings only")
    written, lacking = draw_all(results[0], output_dir, samples=samples, quoted=quoted is not False)
    typer.echo("\n".join(f"wrote {path}" for path in written))
    if lacking:
        typer.echo(f"the results have no rows yet for {', '.join(lacking)}")
