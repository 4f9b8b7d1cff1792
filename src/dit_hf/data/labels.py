"""Which classes a model learns: all classes of a data set, some of them, or new ones that they are mapped to.

A name of a data set is compared as a whole, so that "frog, green" and "frog, red" are two classes.
"""

import difflib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Value

from ..class_names import clean_name
from ..image_folder import list_names
from ..places import describe_missing

logger = logging.getLogger(__name__)

WHOLE_NUMBER = re.compile(r"-?\d+")


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


def describe_left_out(labels: Mapping[Any, int]) -> str:
    """Say how many rows are left out because their labels are none of the classes; nothing if there are none.

    Args:
        labels: Number of the rows of each such label.
    """
    frequent = sorted(labels, key=lambda label: (-labels[label], str(label)))
    shown = list_names([f"{label} {labels[label]}" for label in frequent])
    return f"\nleft out, as rows of other labels: {sum(labels.values())} ({shown})" if labels else ""


def warn_of_empty_classes(labels: Collection[int], class_names: Sequence[str]) -> None:
    """Warn of classes that no image has.

    Args:
        labels: Classes of the images.
        class_names: Names of the classes.
    """
    if empty := [name for label, name in enumerate(class_names) if label not in labels]:
        logger.warning(f"the data set has no image of {list_names(empty)}: check the spelling of their names")


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
    if twice := _twice(wanted):
        raise ValueError(f"class {twice!r} is chosen twice: leave one of them out")
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
        if twice := _twice([clean_name(name) for name in mapping]):
            raise ValueError(f"the label map has {twice!r} twice: leave one of them out")
        mapping = {clean_name(name): clean_name(to) for name, to in mapping.items()}
        return _mapped(feature, mapping, chosen, is_text)
    if isinstance(feature, ClassLabel):
        names = chosen or [clean_name(name) for name in feature.names]
        if not chosen and (twice := _twice(names)):
            raise ValueError(f"column {column!r} has two classes that read {twice!r}: merge them with --label_map_file")
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
    elif not is_text and (wrong := [name for name in mapping if not WHOLE_NUMBER.fullmatch(name)]):
        raise ValueError(f"the label map has {wrong[0]!r}, and the column holds whole numbers: write their digits")
    else:
        keys = [name if is_text else int(name) for name in mapping]
        if len(set(keys)) < len(keys):
            raise ValueError(f"the label map has a number twice, in two spellings: {list(mapping)[:5]}")
    return Classes(names, {key: names.index(to) for key, to in zip(keys, mapping.values(), strict=True)}, False)


def read_names(path: str | None) -> list[str] | None:
    """Read class names from a file, one on each line; None without a file. Blank lines are not counted.

    Raises:
        ValueError: If the file is not in UTF-8, names nothing, or holds a comment or a name twice.
    """
    if not path:
        return None
    names = [name for line in read_utf8(path).split("\n") if (name := clean_name(line))]
    if not names:
        raise ValueError(f"{path} holds no names: write one on each line")
    if comments := [name for name in names if name.startswith("# ")]:
        raise ValueError(f"{path} holds the line {comments[0]!r}, and each line is a name: remove comments")
    if twice := _twice(names):
        raise ValueError(f"{path} holds {twice!r} twice: leave one of them out")
    return names


def read_map(path: str | None) -> dict[str, str] | None:
    """Read a label map from a JSON file, `{"name in the data set": "name of the class"}`; None without a file.

    Raises:
        ValueError: If the file holds anything else, or is not in UTF-8.
    """
    if not path:
        return None
    try:
        mapping = json.loads(read_utf8(path), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not (isinstance(mapping, _Pairs) and mapping and all(isinstance(to, str) and to.strip() for _, to in mapping)):
        raise ValueError(f'{path} is no label map: write {{"name in the data set": "name of the class", ...}}')
    if twice := _twice([clean_name(name) for name, _ in mapping]):
        raise ValueError(f"{path} maps {twice!r} twice: leave one of them out")
    return dict(mapping)


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object, of which a dictionary would keep the last of two with the same name."""


def _twice(names: Sequence[str]) -> str | None:
    """Return a name that comes twice; None if there is none."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def read_utf8(path: str) -> str:
    """Read a text file in UTF-8, with a byte order mark or without; lines end as in Python, whatever system wrote it.

    Raises:
        ValueError: If there is no such file, or if it is in another encoding.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path} is a folder: pass a text file" if os.path.isdir(path) else describe_missing(path))
    content = Path(path).read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ValueError(f"{path} is in UTF-16 or UTF-32, or is no text: save it in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8, as byte {error.start} shows: save it in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
