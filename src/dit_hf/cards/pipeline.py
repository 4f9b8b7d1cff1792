"""The card of a pipeline: how to use it, its architecture, training, evaluation, limits and licence.

The card holds what is handed in and what the pipeline itself knows. Data sets and models are named by an id on the Hub
only, so that no path of this machine is published.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard

from ..configuration_dit import DiTConfig
from .architecture import architecture_of, example_call, summary
from .licences import BASE_TEXT, Licence
from .page import CITATION, LOCAL_ID, PAPER, link, make_page, table
from .results import evaluation_table
from .snippets import use_of_pipeline

SAMPLES, LOSS_CURVE = "samples.png", "loss.png"

LIMITS = """\
The model knows only the images that it was trained on: it takes no text, only {input}. Images of people, writing and
fine structures come out wrong more often than others. What is frequent in the data is frequent in the samples, with the
same one-sidedness; a small data set is partly memorised. Samples are no evidence of anything, and are not meant to pass
as photographs."""
BASE_LIMITS = " The data of the base model have the same effect, and its limits are the limits of this model."
IMAGENET_LIMITS = """ \
ImageNet was gathered from the internet through English nouns: its pictures show some regions, cultures and kinds of
people far more than others, people are in it without their consent, and its terms allow research only."""


class Sample(NamedTuple):
    """A picture that lies beside the card, for the gallery on the Hub.

    Args:
        text: What the picture shows, such as the name of a class.
        file: Name of the file in the folder of the card.
    """

    text: str
    file: str


def make_card(
    pipeline: DiffusionPipeline,
    *,
    model_id: str = LOCAL_ID,
    license: str | Licence | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    results: Sequence[EvalResult] = (),
    has_samples: bool = False,
    has_loss_curve: bool = False,
    gallery: Sequence[Sample] = (),
) -> ModelCard:
    """Generate the card of a pipeline.

    Args:
        pipeline: Pipeline whose architecture, classes and guidance the card describes.
        model_id: Repository that the snippets load; `LOCAL_ID` stands for the folder that the card lies in.
        license: Licence of the weights, as the Hub calls it ("cc-by-nc-4.0"), or with a name and link of its own. None
            leaves the licence open, and the card says so.
        datasets: Ids of the data sets on the Hub.
        base_model: Id on the Hub of the model that this one was made from.
        recipe: Settings and results of the training, by names that people understand.
        results: Evaluation results; `metric_args` holds the settings of each.
        has_samples: Whether the picture `SAMPLES` lies beside the card.
        has_loss_curve: Whether the picture `LOSS_CURVE` lies beside the card.
        gallery: Single pictures for the gallery on the Hub. If there are none, the gallery shows `SAMPLES`.

    Raises:
        ValueError: If the licence or an id is none of the Hub's, or if the card would hold a secret or a path of this
            machine.
    """
    config = pipeline.transformer.config
    licence = license if isinstance(license, Licence) else Licence(license)
    title = "DiT" if model_id == LOCAL_ID else model_id.split("/")[-1]
    shown = list(gallery) or ([Sample(_classes(config), SAMPLES)] if has_samples else [])
    sections = {
        "Use": use_of_pipeline(model_id, example_call(config, pipeline.labels)),
        "Architecture": table(architecture_of(pipeline)),
        "Training": _training(recipe, has_loss_curve),
        "Evaluation": evaluation_table(results),
        "Limits and bias": _limits(config, base_model, datasets),
        "Licence": licence.section + (BASE_TEXT if base_model else ""),
        "Citation": CITATION,
    }
    return make_page(
        title,
        _introduction(config, base_model, has_samples, bool(gallery)),
        sections,
        library_name="diffusers",
        tags=["dit", "diffusion", "dit-hf", *(["class-conditional-image-generation"] if config.num_classes else [])],
        datasets=list(datasets) or None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        model_name=title,
        eval_results=list(results) or None,
        arxiv="2212.09748",
        widget=[{"text": sample.text, "output": {"url": sample.file}} for sample in shown] or None,
        **licence.metadata,
    )


def _introduction(config: DiTConfig, base_model: str | None, has_samples: bool, has_gallery: bool) -> str:
    base = f" It was made from {link(base_model)}." if base_model else ""
    parts = [f"A Diffusion Transformer ({PAPER}) that generates {summary(config)}.{base}"]
    if has_gallery:
        parts.append("<Gallery />")  # the Hub puts the pictures of `widget` here
    if has_samples:
        parts.append(f"![samples of the model]({SAMPLES})")
    return "\n\n".join(parts)


def _training(recipe: Mapping[str, Any] | None, has_loss_curve: bool) -> str:
    text = table(recipe) if recipe else "This card knows nothing of the training."
    return text + (f"\n\n![the training loss]({LOSS_CURVE})" if has_loss_curve else "")


def _limits(config: DiTConfig, base_model: str | None, datasets: Sequence[str]) -> str:
    text = LIMITS.format(input=_classes(config) if config.num_classes else "noise")
    text += BASE_LIMITS if base_model else ""
    return text + (IMAGENET_LIMITS if any("imagenet" in name.lower() for name in datasets) else "")


def _classes(config: DiTConfig) -> str:
    count = config.num_classes
    return f"{count} class{'es' if count > 1 else ''}" if count else "samples without a class"
