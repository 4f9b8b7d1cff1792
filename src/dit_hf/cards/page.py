"""The form of every card: metadata for the Hub, a title, an introduction and sections, without anything private.

The metadata stand between two lines of dashes at the top of the file, where the Hub reads them as YAML.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..redaction import find_secret
from .metadata import check_ids, check_license

CARD = "README.md"
LOCAL_ID = "."  # a card in a folder loads "this folder"; a push replaces "." by the id of the repository
PIPELINE_TAG = "unconditional-image-generation"  # the Hub's closest tag: it has none for images of a class
PAPER = "[Peebles & Xie 2022](https://arxiv.org/abs/2212.09748)"
CITATION = """\
```bibtex
@article{peebles2022scalable,
  title   = {Scalable Diffusion Models with Transformers},
  author  = {Peebles, William and Xie, Saining},
  journal = {arXiv preprint arXiv:2212.09748},
  year    = {2022}
}
```"""


def make_page(title: str, introduction: str, sections: Mapping[str, str], **metadata: Any) -> ModelCard:
    """Put a card together.

    Args:
        title: Heading of the page.
        introduction: Markdown below the heading.
        sections: Heading of each section -> its Markdown; a section without text is left out.
        **metadata: Fields of `huggingface_hub.ModelCardData`; a field that is None is left out.

    Raises:
        ValueError: If the card would hold a secret or a path of this machine, or metadata that the Hub refuses.
    """
    check_license(metadata.get("license"))
    check_ids("base_model", *filter(None, [metadata.get("base_model")]))
    check_ids("datasets", *(metadata.get("datasets") or ()))
    data = ModelCardData(pipeline_tag=PIPELINE_TAG, **metadata)
    parts = [f"# {title}", introduction, *(f"## {name}\n\n{text}" for name, text in sections.items() if text)]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n")
    secret = find_secret(str(card).encode())
    if secret:
        raise ValueError(f"the card would hold {secret}: take it out of the recipe, the results or the base model")
    return card


def table(rows: Mapping[str, Any]) -> str:
    """Write names and values as a Markdown table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def table_of_columns(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write rows as a Markdown table with a heading for each column."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def link(repo_id: str) -> str:
    """Write the id of a model on the Hub as a link to it."""
    return f"[{repo_id}](https://huggingface.co/{repo_id})"


def _cell(value: Any) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def with_repository(text: str, repo_id: str) -> str:
    """Let the snippets of a card load a repository where they load the folder that the card lies in."""
    call = rf'(from_pretrained|load_lora_weights)\("{re.escape(LOCAL_ID)}"'
    return re.sub(call, rf'\1("{repo_id}"', text)
