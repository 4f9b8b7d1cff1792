"""`dit-hf demo`: a page in the browser that draws with a pipeline."""

from typing import Annotated

import typer

from ..extras import require
from .entry import Command, DtypeName, app
from .local_files import check_source

Model = Annotated[
    str, typer.Argument(callback=check_source, help="Folder of a pipeline, or its id on the Hub.", show_default=False)
]
Host = Annotated[
    str, typer.Option(help="Address to listen on: 127.0.0.1 for this machine alone, 0.0.0.0 for its whole network.")
]
Port = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the first free one from 7860")
]
MaxSeconds = Annotated[float, typer.Option(min=1, help="Seconds that a call may take; then it is stopped.")]
MaxWaiting = Annotated[int, typer.Option(min=1, help="Number of calls that may wait; further ones are refused.")]
Dtype = Annotated[DtypeName, typer.Option(help="Precision of the model's computations.")]


@app.command(cls=Command, epilog="Example: dit-hf demo examples/assets/dit-emoji")
def demo(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = None,
    max_seconds: MaxSeconds = 120.0,
    max_waiting: MaxWaiting = 32,
    dtype: Dtype = "float32",
) -> None:
    """Open a page in the browser that draws with a model: from classes, from a picture, or between two classes.

    The page also shows the code of each picture. Stop the command with Ctrl-C.
    """
    require("the demo", "gradio")
    import torch

    from ..demo.limits import Limits
    from ..demo.page import build_page
    from ..demo.server import serve
    from ..pipeline_dit import DiTPipeline

    limits = Limits(max_seconds=max_seconds, max_waiting=max_waiting)
    pipeline = DiTPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    pipeline = pipeline.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    serve(build_page(pipeline, model, limits), limits, server_name=host, server_port=port)


@app.command(
    cls=Command, name="push-space", epilog="Example: dit-hf push-space examples/assets/dit-emoji user/my-space"
)
def push_space(
    model: Model,
    space: Annotated[str, typer.Argument(help="Space to make or renew, as user/name.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see the Space; private otherwise.")] = False,
) -> None:
    """Make a Space of the Hub that draws with a model: the page of `dit-hf demo`.

    The Space holds a copy of this package and, if MODEL is a local folder, of the model.
    """
    require("the demo", "gradio")
    from ..demo.space import push_space as push

    push(model, space, private=not public)
