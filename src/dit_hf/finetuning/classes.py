"""Another set of classes for a trained model: rows of its label table are carried over by name.

Legend: K classes of the model as it is, K' of the new set, D width.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from ..class_names import labels_to_ids, normal_name, synonyms_to_ids
from ..modeling_dit import DiTModel, LabelEmbedder

logger = logging.getLogger("dit_hf.finetuning")


def match_classes(known: Mapping[int, str], names: Sequence[str]) -> list[int | None]:
    """Find for each class of a new set the known class that it continues.

    A new class is known by its whole name first. Failing that, it is known by a synonym of ImageNet's labels: the
    class "tench" continues "tench, Tinca tinca", which is logged. A synonym that several known labels share counts as
    none. A comma in another label divides nothing: "summer" does not continue "beach, summer". New names are never
    divided, and no two of them continue the same class.

    Args:
        known: Labels by id, as in `id2label`.
        names: Names of the new set; (K',).

    Returns:
        Ids in `known`, None for a class that is new; (K',).

    Raises:
        ValueError: If a name is the whole label of several known classes.
    """
    whole, synonyms = labels_to_ids(known), synonyms_to_ids(known)
    keys = [normal_name(name.strip()) for name in names]
    by_label = [_by_label(position, key, whole.get(key, [])) for position, key in enumerate(keys)]
    by_synonym = [ids[0] if len(ids := synonyms.get(key, [])) == 1 else None for key in keys]
    matched: list[int | None] = [None] * len(names)
    for candidates in (by_label, by_synonym):
        for position, class_id in enumerate(candidates):
            if matched[position] is None and class_id not in matched:
                matched[position] = class_id
    for name, class_id, label, synonym in zip(names, matched, by_label, by_synonym, strict=True):
        if class_id is None and (taken := synonym if label is None else label) is not None:
            logger.warning(f"class {name!r} starts anew: another class of the data continues {known[taken]!r}")
        elif class_id is not None and class_id != label:
            logger.info(f"class {name!r} continues {known[class_id]!r}, which lists this name")
    return matched


def _by_label(position: int, name: str, ids: Sequence[int]) -> int | None:
    """Return the class of a whole label. ImageNet has two cranes: each keeps its place."""
    if len(ids) < 2:
        return ids[0] if ids else None
    if position not in ids:
        raise ValueError(f"class {name!r} fits the known classes {', '.join(map(str, ids))}: use a longer name")
    return position


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
