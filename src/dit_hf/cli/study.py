"""`dit-hf study`: the paper's models in miniature, trained and measured."""

import math
from pathlib import Path
from typing import Annotated

import typer

from .entry import Command, app
from .local_files import check_present


def parse_seeds(text: str) -> tuple[int, ...]:
    """Turn "0, 1" into (0, 1)."""
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"--seeds {text!r}: write whole numbers from 0 on, separated by commas, such as 0,1")
    return tuple(map(int, seeds))


@app.command(
    cls=Command,
    epilog="Example: dit-hf study out/study --dataset zalando-datasets/fashion_mnist --budget-minutes 60",
)
def study(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder for results.csv, checkpoints and samples. A rerun continues.", show_default=False),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            callback=check_present,
            help="YAML file of the study's settings, as in runs/; settings that it does not name keep their defaults.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data set: a folder of IDX files (as MNIST's), or the folder or Hub id of a data set of images.",
            show_default="that of --recipe",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds in their order, separated by commas, such as 0,1.", show_default="those of --recipe"),
    ] = None,
    second_extractor: Annotated[
        str | None,
        typer.Option(
            help="Network for a second distance: a name or FILE.py:CLASS, as for --extractor of evaluate. Rows without "
            "a second distance get one if their checkpoint is still there.",
            show_default="that of --recipe",
        ),
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Minutes after which the study stops; a rerun continues.", show_default="no limit"),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the hours that the study will take on this machine, and stop.")
    ] = False,
) -> None:
    """Train and measure miniatures of the paper's twelve models and four blocks. A rerun does only what is missing."""
    import logging
    import time
    from dataclasses import replace

    from ..study.recipe import Recipe
    from ..study.run import Study

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("dit_hf").setLevel(logging.INFO)
    deadline = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    chosen = Recipe() if recipe is None else Recipe.read(recipe)
    if dataset is not None:
        chosen = replace(chosen, dataset=dataset)
    if seeds is not None:
        chosen = replace(chosen, seeds=parse_seeds(seeds))
    if second_extractor is not None:
        chosen = replace(chosen, second_extractor=second_extractor)
    work = Study(chosen, folder)
    typer.echo(work.plan())
    if not plan:
        work.run(deadline)
