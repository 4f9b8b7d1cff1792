"""`dit-hf export`: a pipeline as fixed graphs for OpenVINO, ONNX Runtime or torch."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .entry import Command, app
from .local_files import check_pipeline

Format = Literal["openvino", "onnx", "torch"]
ExportDtype = Literal["float32", "bfloat16", "int8"]


@app.command(cls=Command, epilog="Example: dit-hf export examples/assets/dit-emoji emoji-openvino --dtype bfloat16")
def export(
    model: Annotated[
        str,
        typer.Argument(callback=check_pipeline, help="Folder of a pipeline, or its id on the Hub.", show_default=False),
    ],
    output: Annotated[Path, typer.Argument(help="New folder.", show_default=False)],
    format: Annotated[Format, typer.Option(help="Runtime that is to compute the graphs.")] = "openvino",
    dtype: Annotated[ExportDtype, typer.Option(help="Number format to compute in.")] = "float32",
) -> None:
    """Export a pipeline: a folder that generates the same images in another runtime, faster on many CPUs.

    `dit-hf generate OUTPUT` and `DiTPipeline.from_pretrained` take the new folder like any other.
    """
    from ..pipeline_dit import DiTPipeline

    DiTPipeline.from_pretrained(model).export(output, format=format, dtype=dtype)
    typer.echo(f"wrote {output}")
