"""Opening a data set of labelled images, or of extracted latents, by any name or path that `datasets` knows."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetBuilder, Image, IterableDataset, Value, load_dataset_builder

from .image_files import FilesSource
from .labels import Classes, resolve_classes
from .moments import COLUMNS
from .parquet import ParquetSource
from .retries import retried
from .revision import LOCAL_PREFIX
from .sequential import SequentialSource

__all__ = ["FilesSource", "ImageSource", "ParquetSource", "SequentialSource", "open_images"]

logger = logging.getLogger(__name__)

BINARY = {"binary", "large_binary"}
READERS = {".parquet": "parquet", ".tar": "webdataset"}  # suffix of a pattern -> the reader of `datasets`
ImageSource = ParquetSource | FilesSource | SequentialSource


def open_images(
    name: str,
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
    *,
    config_name: str | None = None,
    revision: str | None = None,
    class_names: Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
) -> ImageSource:
    """Open a data set of labelled images. No image is decoded, and of parquet shards only the footers are read.

    Args:
        name: Id on the Hub, folder, or pattern of files such as `shards/*.parquet` or `shards/*.tar`.
        split: Split of the data set, such as "train".
        image_column: Column that holds the images: a `datasets.Image`, or the bytes of image files.
        label_column: Column that holds the classes: a `datasets.ClassLabel`, whole numbers or texts.
        config_name: Configuration of a data set that has several.
        revision: Branch, tag or commit on the Hub. For local files, the `revision` of the source as it was opened
            before: the files are compared with it.
        class_names: Names of the classes to learn, see `resolve_classes`.
        label_map: Name in the data set -> name of the class, see `resolve_classes`.

    Raises:
        ValueError: If a column is missing or of another type (the message lists the columns), if a class is unknown, or
            if local files are not those of `revision`.
        SourceError: If a shard cannot be read.
    """
    builder = _find_builder(name, config_name, revision)
    dataset = retried(lambda: builder.as_streaming_dataset(split=split), f"the data set {name}")
    if dataset.features is None:
        dataset = dataset._resolve_features()
    features = dataset.features
    columns = [column for column in COLUMNS if column in features] or [image_column]
    if columns == [image_column]:
        _check_columns(name, features, image_column, label_column)
    else:
        label_column = "label"
    classes = resolve_classes(features[label_column], label_column, class_names, label_map)
    files = [str(path) for path in (builder.config.data_files or {}).get(split, [])]
    source: ImageSource
    if builder.name == "parquet" and files:
        source = ParquetSource(files, columns, label_column, classes)
    else:
        dataset = _two_columns(dataset, image_column, label_column)
        listed = _list_files(dataset, classes) if builder.name == "imagefolder" else None
        source = listed or SequentialSource(dataset, files, classes)
    if revision and revision.startswith(LOCAL_PREFIX) and revision != source.revision:
        raise ValueError(f"{name} has changed: it was {revision} and is {source.revision}; put the files back")
    return source


def _find_builder(name: str, config_name: str | None, revision: str | None) -> DatasetBuilder:
    reader = READERS.get(os.path.splitext(name)[1])
    if reader:
        return load_dataset_builder(reader, config_name, data_files=name)
    commit = None if revision and revision.startswith(LOCAL_PREFIX) else revision
    return retried(lambda: load_dataset_builder(name, config_name, revision=commit), f"the data set {name}")


def _check_columns(name: str, features: Any, image_column: str, label_column: str) -> None:
    types = {
        column: feature.dtype if isinstance(feature, Value) else type(feature).__name__
        for column, feature in features.items()
    }
    image = features.get(image_column)
    is_stored_image = isinstance(image, dict) and set(image) == {"bytes", "path"}  # parquet that others wrote
    if not (isinstance(image, Image) or is_stored_image or types.get(image_column) in BINARY):
        raise ValueError(
            f"{name} has no column {image_column!r} of type Image; its columns are {types}: set --image_column"
        )
    if label_column not in features:
        raise ValueError(f"{name} has no column {label_column!r}; its columns are {types}: set --label_column")


def _two_columns(dataset: IterableDataset, image_column: str, label_column: str) -> IterableDataset:
    """Keep the images, not decoded, and the labels, under the names "image" and "label"."""
    dataset = dataset.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))
    renamed = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return dataset.rename_columns(renamed) if renamed else dataset


def _list_files(dataset: IterableDataset, classes: Classes) -> FilesSource | None:
    """Return the files of a folder of images; None if `datasets` hands over their bytes only."""
    rows = []
    for row in dataset:
        path = row["image"]["path"]
        if row["image"]["bytes"] is not None:
            return None
        label = classes.find(row["label"], path)
        if label is not None:
            rows.append((path, label))
    return FilesSource(rows, classes)
