"""`dit-hf status`: how far a training is, how it ended, and what to do next."""

from pathlib import Path
from typing import Annotated

import typer

from .entry import Command, app


@app.command(cls=Command, epilog="Example: dit-hf status out/photos")
def status(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of trainings: their --output_dir.", show_default=False)
    ],
) -> None:
    """Tell whether a training runs, has finished, was stopped or was killed; its step, loss and newest checkpoint.

    For a training on another machine, this watches the heartbeat of its folder for up to a minute.
    """
    from ..training.reporting.summary import describe_run

    for folder in folders:
        typer.echo(describe_run(folder))
