"""`dit-hf convert`: from the original's checkpoints, diffusers' folders and this package's folders to each other."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .entry import Command, app
from .local_files import check_pipeline

Format = Literal["dit_hf", "original", "diffusers"]
TrainedAs = Annotated[
    str | None,
    typer.Option(
        help="Training of a checkpoint: dit; or sit or repa, whose weights have DiT's keys and become a model of flow "
        "matching.",
        metavar="dit|sit|repa",
        show_default="sit if the file is certain to hold its weights, else dit",
    ),
]


@app.command(
    cls=Command,
    epilog="Example: dit-hf convert DiT-XL-2-256x256.pt DiT-XL-2-256 --vae stabilityai/sd-vae-ft-ema",
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            callback=check_pipeline,
            help="Checkpoint of the original code (.pt), or a pipeline's folder or id on the Hub.",
            show_default=False,
        ),
    ],
    destination: Annotated[
        Path,
        typer.Argument(
            help="New folder; with --to original, a new file that ends in .pt or .safetensors.", show_default=False
        ),
    ],
    to: Annotated[
        Format,
        typer.Option(help="Format to write.", metavar="dit_hf|original|diffusers"),  # typer would write dit-hf
    ] = "dit_hf",
    vae: Annotated[
        str | None,
        typer.Option(
            help="Autoencoder for the pipeline of a checkpoint: its folder or id; none for a model of pixels."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Class name of the pipeline's scheduler, such as DDIMScheduler.", show_default="that of the source"
        ),
    ] = None,
    num_attention_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of attention heads of a checkpoint whose size is not one of the paper's."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to take from a checkpoint: ema, model, or their place in it, such as state_dict.ema_model.",
            show_default="ema",
        ),
    ] = None,
    ignore: Annotated[
        str | None,
        typer.Option(help="Weights of a checkpoint that only its training needed, such as projectors; with commas."),
    ] = None,
    trained_as: TrainedAs = None,
    timestep_freq_shift: Annotated[
        float | None,
        typer.Option(
            help="Shift of the timestep frequencies: 1 if the model was trained in diffusers.", show_default="0"
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the source on the Hub.")] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Licence for the model card, as the Hub names it.", show_default="that of the source"),
    ] = None,
) -> None:
    """Convert a checkpoint or a pipeline to a folder that loads, or back to a checkpoint of the original code."""
    from .. import conversion
    from ..hub.errors import one_line_errors
    from ..pipeline_dit import DiTPipeline

    options = {
        "num_attention_heads": num_attention_heads,
        "weights": weights,
        "ignore": ignore,
        "trained_as": trained_as,
        "timestep_freq_shift": timestep_freq_shift,
        "revision": revision,
        "vae": vae,
    }
    arguments: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if vae == "none":
        arguments["vae"] = None
    with one_line_errors(source):
        conversion.convert(DiTPipeline, source, destination, to, scheduler, license, **arguments)
    typer.echo(f"wrote {destination}")
