"""`dit-hf flops`: what a model costs, in closed form."""

from typing import Annotated

import typer

from .entry import Command, app


@app.command(cls=Command, epilog="Example: dit-hf flops DiT-XL/2 --sample-size 64 --guidance-scale 1.5")
def flops(
    model: Annotated[
        str, typer.Argument(help="Model: one of the paper's sizes, or the folder of a model or of a pipeline.")
    ] = "DiT-XL/2",
    sample_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Side of the latents.", show_default="that of the model; 32, for 256 px, for the paper's sizes"
        ),
    ] = None,
    block_type: Annotated[
        str | None,
        typer.Option(
            help="Block design: in_context, cross_attention, adaln or adaln_zero.", show_default="that of the model"
        ),
    ] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Number of sampling steps.")] = 250,
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="Scale of classifier-free guidance; above 1, each step takes two forwards.")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images of a training step.")] = 256,
    train_steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 400_000,
    vae: Annotated[
        str | None, typer.Option(help="Autoencoder to count as well: its folder, or sd for the paper's.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Count the paper's models instead, beside the numbers that it prints.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count what a model costs: multiply-adds (the paper's Gflops), parameters, memory, sampling and training."""
    import json

    from ..analysis import tables

    if paper:
        rows = tables.paper_rows()
        typer.echo(json.dumps(rows, indent=2) if as_json else tables.format_paper_rows(rows))
        return
    overrides = {"sample_size": sample_size, "block_type": block_type}
    costs = tables.costs(
        tables.read_config(model, **{name: value for name, value in overrides.items() if value is not None}),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        train_steps=train_steps,
        vae_config=None if vae is None else tables.read_vae_config(vae),
    )
    typer.echo(json.dumps(costs, indent=2) if as_json else tables.format_costs(costs))
