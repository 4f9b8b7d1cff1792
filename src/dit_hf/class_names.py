"""How names of classes are compared: the one rule of data sets, trainings, adapters and pipelines.

A name stands for the class whose whole label it is. Failing that, it may be a synonym: labels of ImageNet list several
names between commas. Example: with the labels 0 "tench, Tinca tinca", 1 "crane, bird" and 2 "crane, machine", "tench"
is class 0, "crane, bird" and "bird" are class 1, and "crane" is no name, as two classes have it.

Names are compared in Unicode's form NFC, in which "é" is one character; names of files on macOS have two.
"""

import re
import unicodedata
from collections.abc import Mapping


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
    """Map each part of a label between commas to the ids of the classes that have it, in alphabetical order."""
    ids: dict[str, list[int]] = {}
    for class_id, label in id2label.items():
        for part in dict.fromkeys(part.strip() for part in normal_name(label).split(",")):
            ids.setdefault(part, []).append(class_id)
    return dict(sorted(ids.items()))


def names_to_ids(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Map each name to the ids of the classes that it stands for: whole labels first, then parts of labels.

    Args:
        id2label: Labels by class id.
    """
    return synonyms_to_ids(id2label) | labels_to_ids(id2label)
