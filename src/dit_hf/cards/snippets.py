"""Code on the cards that draws an image, ready to be run as it is printed."""

DRAW = """\
image = pipeline({call}, generator=torch.Generator().manual_seed(0)).images[0]
image.save("sample.png")"""

WITH_PACKAGE = f"""\
import torch
from dit_hf import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{{source}}")
{DRAW}"""

WITHOUT_PACKAGE = f"""\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{{source}}", trust_remote_code=True)
{DRAW}"""

IN_DIFFUSERS = f"""\
import torch
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{{source}}")
{DRAW}"""

ADAPTER = f"""\
import torch
from dit_hf import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{{base}}")
pipeline.load_lora_weights("{{source}}")
{DRAW}"""

USE = """\
With the package `dit-hf`:

{with_package}

Without the package, with diffusers alone. This runs the code that lies beside the weights: read that code first, and
name the commit that you have read with `revision=`.

{without_package}

The network alone loads with transformers: `AutoModel.from_pretrained("{source}", subfolder="transformer")` after
`import dit_hf`, or with `trust_remote_code=True`."""


def code(snippet: str, **fields: str) -> str:
    """Fill a snippet in, as a block of Markdown."""
    return f"```python\n{snippet.format(**fields)}\n```"


def use_of_pipeline(source: str, call: str) -> str:
    """Show how to load a pipeline with the package, without the package, and the network alone.

    Args:
        source: Id or folder that is loaded.
        call: Arguments of the pipeline, from `example_call`.
    """
    return USE.format(
        source=source,
        with_package=code(WITH_PACKAGE, source=source, call=call),
        without_package=code(WITHOUT_PACKAGE, source=source, call=call),
    )
