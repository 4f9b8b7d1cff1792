"""The images of a folder, with the labels of its `metadata.jsonl` or `metadata.csv`, or of the folders within it."""

import csv
import hashlib
import json
import posixpath
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...image_folder import OUTSIDE, ImageFolder, list_images
from ...images import read_image, readable_suffixes
from .images import BATCH_SIZE, Batch, ImageBatches, Prepare, stack_images
from .labels import number_labels

METADATA_FILES = ("metadata.jsonl", "metadata.csv")


def folder_batches(folder: str | Path, batch_size: int = BATCH_SIZE, prepare: Prepare | None = None) -> ImageBatches:
    """Return the images of a folder in the order of their paths, with their labels.

    The labels are those of the file `metadata.jsonl`, as `generate` writes it, or `metadata.csv`. Without them, the
    folders within are the classes, numbered in the order of their names.

    Args:
        folder: Folder that is searched at any depth, as `list_images` describes.
        batch_size: Number of images of a batch.
        prepare: Function that makes images of one size, for example by cropping.

    Raises:
        ValueError: If there is no image, or if the file of labels does not fit the images. When batches are read, also
            if an image cannot be decoded; the message names the file.
    """
    listed = list_images(folder) if Path(folder).is_dir() else None
    if listed is None or not listed.names:
        raise ValueError(f"{folder} holds no image: images are known by {', '.join(sorted(readable_suffixes()))}")
    _warn_of_images_left_out(listed)
    labels, class_names = _read_labels(listed)
    paths = listed.paths

    def read(start: int, stop: int) -> Batch:
        images = stack_images([read_image(path) for path in paths[start:stop]], prepare)
        return images if labels is None else (images, labels[start:stop])

    stats = (path.stat() for path in paths)
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in zip(listed.names, stats, strict=True)]
    digest = hashlib.sha256("\n".join([*lines, str(None if labels is None else labels.tolist())]).encode()).hexdigest()
    source = f"{listed.root.resolve()}, {len(paths)} files, {digest}"
    return ImageBatches(len(paths), batch_size, read, source, labels=labels, class_names=class_names)


def _warn_of_images_left_out(listed: ImageFolder) -> None:
    """Warn of pictures that are not measured: those outside the class folders, and those of unreadable formats."""
    if any(suffix == OUTSIDE or suffix in listed.remedies for suffix in listed.left_out):
        warnings.warn(listed.describe(), stacklevel=3)


def _read_labels(listed: ImageFolder) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Return the label of each image, or None, and the names of the classes if they are known."""
    for file in (listed.root / name for name in METADATA_FILES):
        if file.is_file() and (label_of := _read_metadata(file)):
            return number_labels(_order_labels(file, label_of, listed.names), str(file))
    if listed.labels is None:
        return None, None
    return np.array(listed.labels), listed.class_names


def _read_metadata(file: Path) -> dict[str, Any]:
    """Return the label of each image by its path, or nothing if the file has no labels.

    Raises:
        ValueError: If a row is damaged, names no image, or names an image a second time; the message names the line.
    """
    label_of: dict[str, Any] = {}
    for number, row in _iterate_rows(file):
        if not isinstance(row.get("file_name"), str):
            raise ValueError(f"{file}, line {number}: there is no file_name: name the image of the row")
        name = _normalise(row["file_name"])
        if name in label_of:
            raise ValueError(f"{file}, line {number}: {name} has a row already: remove one of the two")
        label_of[name] = row.get("label")
    return {} if all(label is None for label in label_of.values()) else label_of


def _iterate_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the number of the line and the content of each row."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}): save it in that encoding") from error
    if file.suffix == ".csv":
        rows = csv.DictReader(lines)
        yield from ((rows.line_num, {name: value or None for name, value in row.items()}) for row in rows)
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: {error}: write one JSON object on each line") from error
            yield number, row if isinstance(row, dict) else {}


def _order_labels(file: Path, label_of: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the labels in the order of the images.

    Raises:
        ValueError: If an image has no label, or if a row has no image.
    """
    keys = [_normalise(name) for name in names]
    without_label = [name for name in keys if label_of.get(name) is None]
    if without_label:
        raise ValueError(
            f"{file} has no label for {without_label[0]} and {len(without_label) - 1} others: add them, or remove the "
            "file"
        )
    without_image = sorted(label_of.keys() - set(keys))
    if without_image:
        raise ValueError(
            f"{file} names {without_image[0]} and {len(without_image) - 1} others, which are no images of the folder: "
            "put them back, or remove their rows"
        )
    return [label_of[name] for name in keys]


def _normalise(name: str) -> str:
    """Return a path in one form, without "./" and backslashes, and with each accented letter as one character."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))
