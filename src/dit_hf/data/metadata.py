"""Files beside images, such as `metadata.csv`, that may say which class each image has; `datasets` reads their rows.

A file that is not understood is an error or a warning. Otherwise the folders would be the classes, although the user
has written other ones down.
"""

import csv
import json
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ..image_folder import describe_classes, list_images
from .labels import describe_left_out, read_utf8

logger = logging.getLogger(__name__)

METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
# Names of columns, in lower case, that others give to classes.
LABEL_NAMES = {"label", "labels", "class", "classes", "class_name", "classname", "category", "target"}
SEPARATORS = {";": "semicolons", "\t": "tabs"}


def has_label_column(root: Path, names: Sequence[str], label_column: str) -> bool:
    """Return whether a metadata file has the column of classes.

    Args:
        root: Folder of the images.
        names: Paths of files below `root`.
        label_column: Column of classes that is asked for.

    Raises:
        ValueError: If a metadata file cannot be read.
    """
    has_column = False
    for path in (root / name for name in names if Path(name).name.lower() in METADATA):
        if path.name not in METADATA:
            logger.warning(f"{path} is not read: call it {path.name.lower()} if its rows belong to the images")
            continue
        columns = metadata_columns(path)
        has_column = has_column or label_column in columns
        if label_column not in columns and (others := [name for name in columns if name.lower() in LABEL_NAMES]):
            logger.warning(
                f"the column {others[0]!r} of {path} is not used: set --label_column if it holds the classes"
            )
    return has_column


def metadata_columns(path: Path) -> list[str]:
    """Return the columns of a metadata file as `datasets` knows them.

    Raises:
        ValueError: If the file is of another form, or not in UTF-8.
    """
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        first = next((line for line in read_utf8(str(path)).split("\n") if line.strip()), "")
        return _csv_columns(path, first) if path.suffix == ".csv" else _json_columns(path, first)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}: write one object, {{...}}, on each line") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(reason if str(path) in reason else f"{path} cannot be read: {reason}") from error


def _csv_columns(path: Path, first: str) -> list[str]:
    columns = next(csv.reader([first]), [])
    if used := [name for mark, name in SEPARATORS.items() if mark in first and len(columns) == 1]:
        raise ValueError(f"{path} has {used[0]} between its columns: write commas")
    if spaced := [column for column in columns if column != column.strip()]:
        raise ValueError(f"{path} has spaces around its column {spaced[0]!r}: remove them, also in the rows")
    return columns


def _json_columns(path: Path, first: str) -> list[str]:
    row = json.loads(first or "{}")
    if not isinstance(row, dict):
        raise ValueError(f"{path} begins with no object: write one object, {{...}}, on each line")
    return list(row)


def is_one_split(root: Path, split_words: Collection[str]) -> bool:
    """Return whether a metadata file in a folder is about all its images, which are no splits.

    `datasets` would make splits of images that have a word such as "test" in their names.

    Args:
        root: Folder of the images.
        split_words: Names of folders that are splits, in lower case.
    """
    names = os.listdir(root)
    has_splits = any(re.split(r"[-._ 0-9]", name.lower())[0] in split_words for name in names if (root / name).is_dir())
    return not METADATA.isdisjoint(names) and not has_splits


def describe_rows(
    rows: Sequence[tuple[str, int]], other_labels: Mapping[str, int], class_names: Sequence[str], root: Path | None
) -> str:
    """Say how many images the rows of a metadata file give to each class, and what they leave out.

    Args:
        rows: (path, class) of each row that is taken.
        other_labels: Number of the rows of each label that is none of the classes.
        class_names: Names of the classes.
        root: Folder whose images should all have rows; None if it has splits.

    Raises:
        ValueError: If a file is missing, or has rows of several classes.
    """
    labels: dict[str, int] = {}
    for path, label in rows:
        if labels.setdefault(path, label) != label:
            both = f"{class_names[labels[path]]!r} and {class_names[label]!r}"
            raise ValueError(f"{path} has rows of the classes {both}: remove one of them")
    if missing := [path for path in labels if "://" not in path and not os.path.isfile(path)]:
        raise ValueError(
            f"{missing[0]} has a row, and there is no such file. Put it back, or remove its row; missing files: "
            f"{len(missing)}"
        )
    if root is not None and not other_labels:
        seen = {os.path.abspath(path) for path in labels}
        if without := [path for path in list_images(root).paths if os.path.abspath(path) not in seen]:
            logger.warning(
                f"{root} holds images without a row, which are left out, such as {without[0]}: {len(without)} in all"
            )
    return describe_classes([label for _, label in rows], class_names) + describe_left_out(other_labels)
