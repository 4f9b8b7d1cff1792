"""The card of converted weights: where they come from, and whose licence they have."""

from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from .architecture import architecture_of, example_call
from .licences import Licence
from .page import CITATION, LOCAL_ID, PAPER, link, make_page, table
from .snippets import IN_DIFFUSERS, code, use_of_pipeline

INTRODUCTION = """\
A Diffusion Transformer (DiT, {paper}), converted by dit-hf from {origin}.
The weights are those of the source, bit for bit."""


def make_converted_card(
    pipeline: DiffusionPipeline, name: str, source: str, commit: str | None, licence: Licence, *, in_diffusers: bool
) -> ModelCard:
    """Generate the card of a pipeline that was converted.

    Args:
        pipeline: Pipeline that was converted.
        name: Name of the new folder.
        source: File, folder or repository that the weights come from. Of a path only the last part is named.
        commit: Commit of the repository; None for a file or folder.
        licence: Licence of the weights.
        in_diffusers: Whether the new folder is for diffusers' own pipeline, without this package.
    """
    config = pipeline.transformer.config
    call = example_call(config, {} if in_diffusers else pipeline.labels)  # diffusers' pipeline takes no names there
    origin = f"{link(source)} at commit `{commit}`" if commit else f"`{Path(source).name}`"
    use = code(IN_DIFFUSERS, source=LOCAL_ID, call=call) if in_diffusers else use_of_pipeline(LOCAL_ID, call)
    return make_page(
        name,
        INTRODUCTION.format(paper=PAPER, origin=origin),
        {
            "Use": use,
            "Architecture": table(architecture_of(pipeline)),
            "Licence": licence.section,
            "Citation": CITATION,
        },
        library_name="diffusers",
        tags=[
            "dit",
            "diffusion",
            *([] if in_diffusers else ["dit-hf"]),
            *(["class-conditional-image-generation"] if config.num_classes else []),
        ],
        base_model=source if commit else None,
        **licence.metadata,
    )
