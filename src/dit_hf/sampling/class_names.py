"""Class names: which ids the names in `id2label` stand for, and one class id per image from what a user passes.

A label of ImageNet lists synonyms: "tench, Tinca tinca" are two names of one class.
"""

import difflib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from .limits import check_count


def names_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name to the ids of the classes that have it, in alphabetical order.

    Args:
        id2label: Labels by class id; the names of a class are separated by commas.
    """
    names: dict[str, list[int]] = {}
    for class_id, label in id2label.items():
        for name in dict.fromkeys(part.strip() for part in label.split(",")):
            names.setdefault(name, []).append(class_id)
    return dict(sorted(names.items()))


def ids_of_names(names: str | Sequence[str], id2label: Mapping[int, str]) -> list[int]:
    """Map class names to class ids.

    Args:
        names: One name, or a list of names.
        id2label: Labels by class id.

    Raises:
        ValueError: If no class or several classes have a name.
    """
    known = names_to_ids(id2label)
    return [_id_of_name(name, known) for name in ([names] if isinstance(names, str) else names)]


def _id_of_name(name: str, known: Mapping[str, list[int]]) -> int:
    ids = known.get(name, [])
    if len(ids) > 1:
        raise ValueError(f"{name!r} names the classes {', '.join(map(str, ids))}: pass one of these ids")
    if not known:
        raise ValueError(f"class {name!r}: this pipeline has no id2label, pass ids instead of names")
    if not ids:
        close = " or ".join(map(repr, difflib.get_close_matches(name, known, n=3, cutoff=0.4)))
        raise ValueError(f"no class is named {name!r}: did you mean {close or 'one of pipe.labels'}?")
    return ids[0]


def class_ids(class_labels: Any, num_classes: int, id2label: Mapping[int, str]) -> list[int]:
    """Map ids and names, which may be mixed, to ids in 0..num_classes - 1.

    Args:
        class_labels: An id, a name, or a list, tuple, tensor or array of them.
        num_classes: Number of classes of the model.
        id2label: Labels by class id; empty if the classes have no names.

    Raises:
        ValueError: If a label is neither an id of a class nor the name of one class.
    """
    labels = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
    labels = labels if isinstance(labels, (list, tuple)) else [labels]
    if not labels:
        raise ValueError("class_labels is empty: pass at least one id or name")
    return [_class_id(position, label, num_classes, id2label) for position, label in enumerate(labels)]


def _class_id(position: int, label: Any, num_classes: int, id2label: Mapping[int, str]) -> int:
    if isinstance(label, str):
        return ids_of_names(label, id2label)[0]
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise ValueError(f"class_labels[{position}]={label!r} is neither a whole number nor a name")
    if not 0 <= operator.index(label) < num_classes:
        raise ValueError(f"class_labels[{position}]={label} is outside 0..{num_classes - 1}")
    return operator.index(label)


def label_batch(
    class_labels: Any, num_images_per_label: int, num_images: int | None, num_classes: int, id2label: Mapping[int, str]
) -> list[int] | list[None]:
    """Return one class id per image, or one None per image of an unconditional model.

    Args:
        class_labels: As in `class_ids`; None for an unconditional model.
        num_images_per_label: Number of images of each label, next to each other.
        num_images: Number of images; only for an unconditional model.
        num_classes: Number of classes of the model, 0 for an unconditional one.
        id2label: Labels by class id.

    Raises:
        ValueError: If the labels do not fit the model, or a number is less than 1.
    """
    check_count("num_images_per_label", num_images_per_label)
    if num_classes == 0:
        if class_labels is not None:
            raise ValueError(f"class_labels={class_labels!r}: the model is unconditional, pass num_images instead")
        check_count("num_images", 1 if num_images is None else num_images)
        return [None] * (num_images or 1) * num_images_per_label
    if num_images is not None:
        raise ValueError(f"num_images={num_images} is for unconditional models: pass num_images_per_label instead")
    if class_labels is None:
        raise ValueError(f"class_labels=None: the model has {num_classes} classes, pass ids or names")
    ids = class_ids(class_labels, num_classes, id2label)
    return [class_id for class_id in ids for _ in range(num_images_per_label)]
