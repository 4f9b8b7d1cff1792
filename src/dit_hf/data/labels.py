"""Which classes a model learns: all classes of a data set, some of them, or new ones that they are mapped to.

A name of a data set is compared as a whole, so that "frog, green" and "frog, red" are two classes.
"""

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Value

from ..class_names import clean_name


@dataclass(frozen=True)
class Classes:
    """The classes of a training, and the labels in the source that lead to them.

    Args:
        names: Names of the classes 0, 1, 2 ...
        numbers: Label in the data set, a number or a text -> class of the training.
        complete: Whether any other label is an error. If not, rows of other labels are left out.
    """

    names: list[str]
    numbers: dict[int | str, int]
    complete: bool

    def find(self, label: Any, key: str) -> int | None:
        """Find the class of a row; None if the row is left out.

        Args:
            label: Label of the row in the data set.
            key: Name of the row for the message of an error.

        Raises:
            ValueError: If the label is neither a number nor a text, or outside a complete set of classes.
        """
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ValueError(f"label {label!r} of {key} is no class: mend or remove that row")
        class_label = self.get(label)
        if self.complete and class_label is None:
            raise ValueError(f"label {label!r} of {key} is outside the {len(self.names)} classes: mend or remove it")
        return class_label

    def get(self, label: Any) -> int | None:
        """Find the class of a label; None for a label of no class."""
        return self.numbers.get(clean_name(label) if isinstance(label, str) else label)


def select_classes(names: Sequence[str], chosen: Sequence[str]) -> dict[int, int]:
    """Map the labels of the chosen class names to 0, 1, 2 ... in the order of `chosen`.

    Args:
        names: Names of all classes of the data set.
        chosen: Names of some of them.

    Raises:
        ValueError: If a chosen name is not a class of the data set, or is chosen twice.
    """
    wanted, labels = (
        [clean_name(name) for name in chosen],
        {clean_name(name): label for label, name in enumerate(names)},
    )
    if twice := [name for name, count in Counter(wanted).items() if count > 1]:
        raise ValueError(f"class {twice[0]!r} is chosen twice: leave one of them out")
    if unknown := sorted(set(wanted) - set(labels)):
        near = difflib.get_close_matches(unknown[0], labels, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"the data set has no class {unknown[0]!r}; its {len(names)} classes begin {list(names[:5])}{hint}"
        )
    return {labels[name]: new_label for new_label, name in enumerate(wanted)}


def resolve_classes(
    feature: Any, column: str, chosen: Sequence[str] | None = None, mapping: Mapping[str, str] | None = None
) -> Classes:
    """Find the classes of a label column.

    Args:
        feature: Feature of the column in `datasets`: a `ClassLabel`, or a `Value` of whole numbers or of texts.
        column: Name of the column, for messages.
        chosen: Names of the classes to learn, in the order of their new labels. For a column of plain numbers, the
            name of each number 0, 1, 2 ...
        mapping: Name (or plain number) in the data set -> name of the class; several names may map to one class.

    Raises:
        ValueError: If the column holds no classes, if nothing names them, or if a name is unknown.
    """
    kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if not isinstance(feature, ClassLabel) and not kind.startswith(("int", "uint", "string", "large_string")):
        raise ValueError(f"column {column!r} holds {kind}: classes are ClassLabel, whole numbers or texts")
    is_text = kind in ("string", "large_string")
    chosen = [clean_name(name) for name in chosen] if chosen else None
    if mapping:
        mapping = {clean_name(name): clean_name(to) for name, to in mapping.items()}
        return _mapped(feature, mapping, chosen, is_text)
    if isinstance(feature, ClassLabel):
        names = chosen or [clean_name(name) for name in feature.names]
        known: list[int | str] = [*select_classes(feature.names, names)]
        return Classes(names, {label: k for k, label in enumerate(known)}, complete=not chosen)
    if not chosen:
        raise ValueError(
            f"column {column!r} holds {kind} without names: name the classes, one a line, in a file, and pass it as "
            "--class_names_file, or map them with --label_map_file"
        )
    select_classes(chosen, chosen)  # refuses a name that comes twice
    keys: list[int | str] = [*chosen] if is_text else [*range(len(chosen))]
    return Classes(list(chosen), {key: label for label, key in enumerate(keys)}, complete=not is_text)


def _mapped(feature: Any, mapping: Mapping[str, str], chosen: Sequence[str] | None, is_text: bool) -> Classes:
    names = list(chosen) if chosen else list(dict.fromkeys(mapping.values()))
    if unknown := sorted(set(mapping.values()) - set(names)):
        raise ValueError(f"the label map leads to {unknown[0]!r}, which is not among the classes chosen: {names[:5]}")
    if isinstance(feature, ClassLabel):
        keys: list[int | str] = list(select_classes(feature.names, list(mapping)))
    elif not is_text and (wrong := [name for name in mapping if not name.lstrip("-").isdecimal()]):
        raise ValueError(f"the label map has {wrong[0]!r}, and the column holds whole numbers: write their digits")
    else:
        keys = [name if is_text else int(name) for name in mapping]
    return Classes(names, {key: names.index(to) for key, to in zip(keys, mapping.values(), strict=True)}, False)


def read_names(path: str | None) -> list[str] | None:
    """Read class names from a file, one on each line; None without a file. Blank lines are not counted.

    Raises:
        ValueError: If the file is not in UTF-8, or names nothing.
    """
    if not path:
        return None
    names = [clean_name(line) for line in read_utf8(path).split("\n")]
    if not any(names):
        raise ValueError(f"{path} holds no names: write one on each line")
    return [name for name in names if name]


def read_map(path: str | None) -> dict[str, str] | None:
    """Read a label map from a JSON file, `{"name in the data set": "name of the class"}`; None without a file.

    Raises:
        ValueError: If the file holds anything else, or is not in UTF-8.
    """
    if not path:
        return None
    try:
        mapping = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not (isinstance(mapping, dict) and mapping and all(isinstance(name, str) for name in mapping.values())):
        raise ValueError(f'{path} is no label map: write {{"name in the data set": "name of the class", ...}}')
    return mapping


def read_utf8(path: str) -> str:
    """Read a text file in UTF-8, with a byte order mark or without; lines end as in Python, whatever system wrote it.

    Raises:
        ValueError: If the file is in another encoding.
    """
    content = Path(path).read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ValueError(f"{path} is in UTF-16 or UTF-32, or is no text: save it in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8, as byte {error.start} shows: save it in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
