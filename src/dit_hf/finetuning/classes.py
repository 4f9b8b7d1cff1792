"""Another set of classes for a trained model: rows of its label table are carried over by name.

Legend: K classes of the model as it is, K' of the new set, D width.
"""

from collections.abc import Mapping, Sequence

import torch

from ..modeling_dit import DiTModel, LabelEmbedder
from ..sampling.class_names import names_to_ids


def match_classes(known: Mapping[int, str], names: Sequence[str]) -> list[int | None]:
    """Find for each class of a new set the known class that it is.

    A class is known by its whole label, else by one of its names: "tench, Tinca tinca" has two.

    Args:
        known: labels by id, as in `id2label`.
        names: labels of the new set.

    Returns:
        Ids in `known`, None for a class that is not there; (K',).

    Raises:
        ValueError: if a name fits several known classes.
    """
    by_label: dict[str, list[int]] = {}
    for class_id, label in known.items():
        by_label.setdefault(label, []).append(class_id)
    by_name = names_to_ids(known)
    return [_match(position, name, by_label, by_name) for position, name in enumerate(names)]


def _match(position: int, name: str, by_label: dict[str, list[int]], by_name: dict[str, list[int]]) -> int | None:
    synonyms = [part.strip() for part in name.split(",")]
    ids = by_label.get(name) or list(dict.fromkeys(i for synonym in synonyms for i in by_name.get(synonym, [])))
    if len(ids) > 1 and position not in ids:  # ImageNet has two cranes: each keeps its place
        raise ValueError(f"class {name!r} fits the known classes {', '.join(map(str, ids))}: use a longer name")
    return position if len(ids) > 1 else (ids[0] if ids else None)


@torch.no_grad()
def carry_classes(model: DiTModel, origins: Sequence[int | None]) -> None:
    """Give a model another set of classes, in place.

    A row of the label table is copied where the class was known; a new class starts at the mean of the known ones, and
    the null class stays as it is.

    Args:
        model: conditional, without an adapter.
        origins: for each new class its id so far, or None; (K',).

    Raises:
        ValueError: if the model is unconditional, if there are no classes, or if an id is not one of the model's.
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
