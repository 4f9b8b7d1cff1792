"""The card of an exported pipeline: what runs it, and what it was exported from."""

from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from .architecture import architecture_of, example_call
from .licences import Licence
from .page import CITATION, LOCAL_ID, PAPER, make_page, table
from .snippets import WITH_PACKAGE, code

INTRODUCTION = """\
A Diffusion Transformer (DiT, {paper}), exported by dit-hf{origin} for {package}, to compute in {dtype}.
The folder holds fixed graphs instead of weights: it draws images, and cannot be trained or adapted."""


def make_exported_card(
    pipeline: DiffusionPipeline, name: str, source: str, licence: Licence, package: str, format: str, dtype: str
) -> ModelCard:
    """Generate the card of an exported pipeline.

    Args:
        pipeline: Pipeline that was exported.
        name: Name of the new folder.
        source: Folder or repository that the pipeline was loaded from; of a path only the last part is named.
        licence: Licence of the weights.
        package: Package that runs the graphs.
        format: Name of the runtime.
        dtype: Number format that the graphs compute in.
    """
    config = pipeline.transformer.config
    origin = f" from `{Path(source).name}`" if source else ""
    install = f"pip install dit-hf{'' if format == 'torch' else f'[{format}]'}"
    use = code(WITH_PACKAGE, source=LOCAL_ID, call=example_call(config, pipeline.labels))
    return make_page(
        name,
        INTRODUCTION.format(paper=PAPER, origin=origin, package=package, dtype=dtype),
        {
            "Use": f"`{install}`, then:\n\n{use}",
            "Architecture": table(architecture_of(pipeline)),
            "Licence": licence.section,
            "Citation": CITATION,
        },
        library_name="diffusers",
        tags=["dit", "diffusion", "dit-hf", format],
        **licence.metadata,
    )
