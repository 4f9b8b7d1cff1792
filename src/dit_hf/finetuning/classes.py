"""Another set of classes for a trained model: rows of its label table are carried over by name.

Legend: K classes of the model as it is, K' of the new set, D width.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from ..modeling_dit import DiTModel, LabelEmbedder

logger = logging.getLogger("dit_hf.finetuning")


def match_classes(known: Mapping[int, str], names: Sequence[str]) -> list[int | None]:
    """Find for each class of a new set the known class that it continues.

    A new class is known by its whole name first. Failing that, it is known by a synonym of ImageNet's labels: the
    class "tench" continues "tench, Tinca tinca". A part that several known labels share is no synonym: "frog" continues
    neither "frog, green" nor "frog, red". New names are never divided, and no two of them continue the same class.
    Names are compared in Unicode's form NFC, since macOS stores "é" in names of files as two characters.

    Args:
        known: Labels by id, as in `id2label`.
        names: Names of the new set; (K',).

    Returns:
        Ids in `known`, None for a class that is new; (K',).

    Raises:
        ValueError: If a name is the whole label of several known classes.
    """
    whole: dict[str, list[int]] = {}
    for class_id, label in known.items():
        whole.setdefault(_normal(label), []).append(class_id)
    matched = [_by_label(position, name, whole.get(_normal(name), [])) for position, name in enumerate(names)]
    synonyms = _synonyms(known)
    for position, name in enumerate(names):
        synonym = synonyms.get(_normal(name))
        if matched[position] is not None or synonym is None:
            continue
        if synonym in matched:
            logger.warning(f"class {name!r} starts anew: another class of the data continues {known[synonym]!r}")
        else:
            matched[position] = synonym
    return matched


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _by_label(position: int, name: str, ids: Sequence[int]) -> int | None:
    """Return the class of a whole label. ImageNet has two cranes: each keeps its place."""
    if len(ids) < 2:
        return ids[0] if ids else None
    if position not in ids:
        raise ValueError(f"class {name!r} fits the known classes {', '.join(map(str, ids))}: use a longer name")
    return position


def _synonyms(known: Mapping[int, str]) -> dict[str, int]:
    """Map the parts of labels that no other label has to their classes: "tench, Tinca tinca" has two."""
    parts = {class_id: {_normal(part) for part in label.split(",")} for class_id, label in known.items()}
    counts = Counter(part for each in parts.values() for part in each)
    return {part: class_id for class_id, each in parts.items() for part in each if counts[part] == 1}


@torch.no_grad()
def carry_classes(model: DiTModel, origins: Sequence[int | None]) -> None:
    """Give a model another set of classes, in place.

    The row of a known class is copied, a new class starts at the mean of the known rows, and the row of the null class
    stays as it is.

    Args:
        model: Conditional model without an adapter.
        origins: Id that each new class had so far, or None; (K',).

    Raises:
        ValueError: If the model is unconditional, if there are no classes, or if an id is not one of the model's.
    """
    config = model.config
    if model.y_embedder is None:
        raise ValueError("num_classes=0: an unconditional model has no label table that classes could be carried to")
    if not origins:
        raise ValueError("the new set has no classes: name at least one")
    for origin in origins:
        if origin is not None and not 0 <= origin < config.num_classes:
            raise ValueError(f"class {origin} cannot be carried over: the model has 0..{config.num_classes - 1}")
    old = model.y_embedder.embedding_table.weight  # (K + 1, D), or (K, D) without a null class
    mean = old[: config.num_classes].mean(0)  # (D,)
    rows = [mean if origin is None else old[origin] for origin in origins]
    if config.has_null_class:
        rows.append(old[config.null_class_id])
    config.num_classes = len(origins)
    embedder = LabelEmbedder(config).to(old).train(model.y_embedder.training)
    embedder.embedding_table.weight.copy_(torch.stack(rows))  # (K' + 1, D)
    model.y_embedder = embedder
