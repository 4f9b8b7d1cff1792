"""`dit-hf train`, `dit-hf finetune` and `dit-hf extract`: trainings, and latents for them, without a launcher."""

import sys
from typing import Annotated, Any

import typer

from ..flags import in_flags
from .entry import Command, app
from .local_files import check_source

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # flags of the settings, which `training` parses

NumProcesses = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of processes, started as `accelerate launch` would, on GPUs or not.",
        show_default="1, without a launcher",
    ),
]
ListSettings = Annotated[bool, typer.Option("--settings", help="Print every setting with its default, and stop.")]


class TrainCommand(Command):
    """A command that trains; its errors speak of flags."""

    def invoke(self, ctx: typer.Context) -> Any:
        from .. import training  # noqa: F401, because it has to be imported before torch

        try:
            return super().invoke(ctx)
        except ValueError as error:
            from ..extraction import FIELDS
            from ..training.settings import all_rows

            names = FIELDS if ctx.info_name == "extract" else all_rows()
            raise ValueError(in_flags(str(error), names, "_")) from error


@app.command(
    cls=TrainCommand,
    context_settings=SETTINGS,
    options_metavar="[FILE.yaml] [--SETTING VALUE ...]",
    epilog="Example: dit-hf train examples/configs/emoji_10.yaml --output_dir out/emoji",
)
def train(ctx: typer.Context, num_processes: NumProcesses = None, settings: ListSettings = False) -> None:
    """Train a model with the settings of a YAML file, of flags, or of both. The same command again resumes."""
    from ..training.processes.launcher import launch
    from ..training.settings import parse_settings

    if not ctx.args and not settings:  # the settings' own default is ImageNet, which is seldom what is meant
        raise ValueError(
            "nothing says what to train on: name a file of settings, such as examples/configs/emoji_10.yaml of a "
            "checkout, or a data set with --dataset_name; --settings lists all settings"
        )
    parse_settings(["--help"] if settings else ctx.args)  # a wrong setting is one line, on any number of processes
    sys.exit(launch(ctx.args, num_processes))


@app.command(
    cls=TrainCommand,
    context_settings=SETTINGS,
    options_metavar="--init_from MODEL [--SETTING VALUE ...]",
    epilog="Example: dit-hf finetune photos --init_from examples/assets/dit-emoji --output_dir out/photos",
)
def finetune(
    ctx: typer.Context,
    folder: Annotated[str, typer.Argument(help="Folder of images, one folder per class.", show_default=False)],
    num_processes: NumProcesses = None,
    settings: ListSettings = False,
) -> None:
    """Teach a trained model the images of a folder. The settings suit 20 to 2,000 images; flags change them.

    Size, VAE, objective, schedule and resolution are those of the model that --init_from names.
    """
    from ..training.processes.launcher import launch
    from ..training.settings import finetune_arguments, parse_settings

    if settings:
        parse_settings(["--help"])
    sys.exit(launch(finetune_arguments(folder, ctx.args), num_processes))


@app.command(
    cls=TrainCommand,
    context_settings=SETTINGS,
    options_metavar="[--SETTING VALUE ...]",
    epilog="Example: dit-hf extract photos --vae_name_or_path stabilityai/sd-vae-ft-ema --resolution 256 "
    "--output_dir out/photos-latents",
)
def extract(
    ctx: typer.Context,
    dataset: Annotated[
        str,
        typer.Argument(
            callback=check_source, help="Images: a folder, a pattern of files, or an id on the Hub.", show_default=False
        ),
    ],
    num_processes: NumProcesses = None,
    settings: ListSettings = False,
) -> None:
    """Encode the images of a data set once, for trainings that then need no encoder. The same command again continues.

    Train on the latents with --dataset_name, followed by their --output_dir.
    """
    from ..extraction import parse_settings
    from ..training.processes.launcher import launch

    if settings:
        parse_settings(["--help"])
    arguments = [*ctx.args, "--dataset_name", dataset]
    parse_settings(arguments)
    sys.exit(launch(arguments, num_processes, "dit_hf.extraction"))
