"""How names of classes are compared: the one rule of data sets, trainings, adapters and pipelines.

A name stands for the class whose whole label it is. Failing that, it may be a synonym: ImageNet's labels list several
names between commas, and no other labels do. Example: with the labels 0 "tench, Tinca tinca", 1 "green snake, grass
snake", 2 "garter snake, grass snake" and 3 "beach, summer", "tench" is class 0, "green snake" is class 1, "grass snake"
is no name, as two classes have it, and class 3 has the name "beach, summer" alone.

Names are compared in Unicode's form NFC, in which "é" is one character; names of files on macOS have two.
"""

import re
import unicodedata
from collections.abc import Mapping

from .synonyms import lists_synonyms


def clean_name(name: str) -> str:
    """Return a name in the form in which it is stored: NFC, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def normal_name(name: str) -> str:
    """Return a name in the form in which it is compared: NFC, with one space after each comma and none before it."""
    return re.sub(r"\s*,\s*", ", ", unicodedata.normalize("NFC", name))


def labels_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each whole label to the ids of the classes that have it."""
    ids: dict[str, list[int]] = {}
    for class_id, label in id2label.items():
        ids.setdefault(normal_name(label.strip()), []).append(class_id)
    return ids


def synonyms_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name that a label lists to the ids of the classes that have it, in alphabetical order.

    A label of ImageNet lists its parts between commas, and another label lists itself alone.
    """
    ids: dict[str, list[int]] = {}
    for class_id, stored in id2label.items():
        label = normal_name(stored.strip())
        listed = label.split(", ") if lists_synonyms(label) else [label]
        for name in dict.fromkeys(listed):
            ids.setdefault(name, []).append(class_id)
    return dict(sorted(ids.items()))


def names_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name to the ids of the classes that it stands for: whole labels first, then synonyms.

    Args:
        id2label: Labels by class id.
    """
    return synonyms_to_ids(id2label) | labels_to_ids(id2label)
