"""The card of a LoRA adapter: its base model, its classes, its rank and its licence."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from .architecture import example_label
from .licences import BASE_TEXT, Licence
from .metadata import hub_id
from .page import LOCAL_ID, link, make_page, table
from .snippets import ADAPTER, code

LOCAL_BASE = "path/to/the/base/model"
WITHOUT_BASE = """\
The adapter was trained on a local model that is not on the Hub: put the path of that model where the snippet has
`path/to/the/base/model`.

"""


def make_adapter_card(
    *,
    base_model: str | None,
    num_classes: int,
    labels: Mapping[str, int],
    rank: int,
    alpha: float,
    num_parameters: int,
    has_null_class: bool = True,
    license: str | None = None,
) -> ModelCard:
    """Generate the card of an adapter.

    Args:
        base_model: Model that the adapter was trained on. Only an id on the Hub is named.
        num_classes: Number of classes that the adapter brings; 0 for an unconditional model.
        labels: Names that stand for one class only -> the id of the class.
        rank: Rank of the adapter's matrices.
        alpha: LoRA's alpha; the adapter's output is multiplied by alpha / rank.
        num_parameters: Number of parameters in the adapter's file.
        has_null_class: Whether the model can be guided.
        license: Licence of the adapter, as the Hub calls it.

    Raises:
        ValueError: If the licence is none of the Hub's, or if the card would hold a secret.
    """
    base = hub_id(base_model)
    classes = f"It brings its own label table, of {num_classes} classes (`classes.json`)." if num_classes else ""
    call = f"class_labels=[{example_label(num_classes, labels)}]" if num_classes else "num_images=1"
    guidance = "" if num_classes and has_null_class else ", guidance_scale=1"
    use = code(ADAPTER, base=base or LOCAL_BASE, source=LOCAL_ID, call=call + guidance)
    rows: dict[str, Any] = {
        "base model": link(base) if base else "a local model, which is not on the Hub",
        "rank": rank,
        "alpha": f"{alpha:g}",
        "classes": num_classes or "none",
        "parameters of the adapter": f"{num_parameters:,}",
    }
    return make_page(
        "A LoRA adapter of a DiT",
        f"A LoRA adapter ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) of a Diffusion Transformer. {classes}",
        {
            "Use": (use if base else WITHOUT_BASE + use),
            "Adapter": table(rows),
            "Licence": Licence(license).section + BASE_TEXT,
        },
        library_name="peft",
        base_model=base,
        base_model_relation="adapter" if base else None,
        license=license,
        tags=["dit", "dit-hf", "lora"],
    )
