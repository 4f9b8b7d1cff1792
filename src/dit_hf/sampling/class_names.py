"""Class ids for what a user passes: names and ids, one for each image.

Which class a name stands for is decided in `class_names.py` of the ground floor.
"""

import difflib
import functools
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from diffusers.utils import logging

from ..class_names import names_to_ids, normal_name
from .limits import check_count


def ids_of_names(names: str | Sequence[str], id2label: Mapping[int, str]) -> list[int]:
    """Map class names to class ids.

    Args:
        names: One name, or a list of names.
        id2label: Labels by class id.

    Raises:
        ValueError: If no class or several classes have a name.
    """
    known = names_to_ids(id2label)
    return [_id_of_name(name, known, id2label) for name in ([names] if isinstance(names, str) else names)]


def _id_of_name(name: str, known: Mapping[str, list[int]], id2label: Mapping[int, str]) -> int:
    ids = known.get(normal_name(name), [])
    if len(ids) > 1:
        labels = ", ".join(f"{class_id} {id2label[class_id]!r}" for class_id in ids)
        raise ValueError(
            f"{name!r} names the classes {', '.join(map(str, ids))}: pass one of these ids, or a whole label ({labels})"
        )
    if not known:
        raise ValueError(f"class {name!r}: this pipeline has no id2label, pass ids instead of names")
    if not ids:
        spelled = {each.casefold(): each for each in known}
        near = difflib.get_close_matches(normal_name(name).strip().casefold(), spelled, n=3, cutoff=0.4)
        close = " or ".join(repr(spelled[each]) for each in near)
        number = f" For the id {name.strip()}, pass a number, not a text." if name.strip().isdecimal() else ""
        raise ValueError(f"no class is named {name!r}: did you mean {close or 'one of pipe.labels'}?{number}")
    return ids[0]


def labels_of_text(text: str, names: Collection[str]) -> list[int | str]:
    """Turn labels that a user typed, separated by commas, into ids and names.

    A name that holds a comma is one label, and digits are a name if a class has it. Example: if the names are "10" and
    "beach, summer", the text "10, beach, summer, 7" is ["10", "beach, summer", 7].

    Args:
        text: Such as "3, panda face".
        names: Names of the classes, as `names_to_ids` returns them.
    """
    labels: list[int | str] = []
    parts = [part.strip() for part in normal_name(text).split(",")]
    while parts:
        length = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in names), 1)
        label, parts = ", ".join(parts[:length]), parts[length:]
        if label:
            labels.append(int(label) if label.isdecimal() and label not in names else label)
    return labels


def class_ids(class_labels: Any, config: Any, id2label: Mapping[int, str]) -> list[int]:
    """Map ids and names, which may be mixed, to ids of classes.

    Args:
        class_labels: An id, a name, or a list, tuple, tensor or array of them. The id of the null class, num_classes,
            asks for an image of no class.
        config: Configuration of the model.
        id2label: Labels by class id; empty if the classes have no names.

    Raises:
        ValueError: If a label is neither an id of a class nor the name of one class.
    """
    labels = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
    labels = labels if isinstance(labels, (list, tuple)) else [labels]
    if not labels:
        raise ValueError("class_labels is empty: pass at least one id or name")
    ids = [_class_id(position, label, config, id2label) for position, label in enumerate(labels)]
    warn_of_null_class(ids, config.num_classes)
    _warn_of_names(
        [class_id for label, class_id in zip(labels, ids, strict=True) if not isinstance(label, str)], id2label
    )
    return ids


def _warn_of_names(ids: Sequence[int], id2label: Mapping[int, str]) -> None:
    """Warn of ids that are names of other classes, if all names are numbers: "1", "10", "2" have the ids 0, 1, 2."""
    names = {label.strip(): class_id for class_id, label in id2label.items()}
    for class_id in dict.fromkeys(ids) if all(map(str.isdecimal, names)) else ():
        if (named := names.get(str(class_id), class_id)) != class_id:
            _warn_once(
                f"the id {class_id} is the class {id2label.get(class_id)!r}; for the class named '{class_id}', whose "
                f"id is {named}, pass the text '{class_id}'"
            )


@functools.cache
def _warn_once(message: str) -> None:
    logging.get_logger(__name__).warning(message)


def warn_of_null_class(ids: Collection[int], num_classes: int) -> None:
    """Warn if one of the ids is that of the null class, which may be meant, or one too many."""
    if num_classes in ids:
        message = f"class {num_classes} is the null class: its images are of no class in particular"
        logging.get_logger(__name__).warning(message)


def _class_id(position: int, label: Any, config: Any, id2label: Mapping[int, str]) -> int:
    if isinstance(label, str):
        return ids_of_names(label, id2label)[0]
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise ValueError(f"class_labels[{position}]={label!r} is neither a whole number nor a name")
    if not 0 <= operator.index(label) < config.num_classes + config.has_null_class:
        null = f", or {config.num_classes} for no class" if config.has_null_class else ""
        raise ValueError(f"class_labels[{position}]={label} is outside 0..{config.num_classes - 1}{null}")
    return operator.index(label)


def label_batch(
    class_labels: Any, num_images_per_label: int, num_images: int | None, config: Any, id2label: Mapping[int, str]
) -> list[int] | list[None]:
    """Return one class id per image, or one None per image of an unconditional model.

    Args:
        class_labels: As in `class_ids`; None for an unconditional model.
        num_images_per_label: Number of images of each label, next to each other.
        num_images: Number of images; only for an unconditional model.
        config: Configuration of the model.
        id2label: Labels by class id.

    Raises:
        ValueError: If the labels do not fit the model, or a number is less than 1.
    """
    check_count("num_images_per_label", num_images_per_label)
    if config.num_classes == 0:
        if class_labels is not None:
            raise ValueError(f"class_labels={class_labels!r}: the model is unconditional, pass num_images instead")
        check_count("num_images", 1 if num_images is None else num_images)
        return [None] * (num_images or 1) * num_images_per_label
    if num_images is not None:
        raise ValueError(f"num_images={num_images} is for unconditional models: pass num_images_per_label instead")
    if class_labels is None:
        raise ValueError(f"class_labels=None: the model has {config.num_classes} classes, pass ids or names")
    return [class_id for class_id in class_ids(class_labels, config, id2label) for _ in range(num_images_per_label)]
