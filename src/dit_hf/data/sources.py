"""Opening a data set of labelled images, or of extracted latents: a local folder, files, or a name on the Hub."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, DatasetBuilder, Image, IterableDataset, Value

from ..image_folder import ARCHIVE
from ..network import reason_of
from .image_files import FilesSource
from .labels import Classes, resolve_classes
from .local_folders import SPLIT_OF_WORD, find_image_folder
from .metadata import describe_rows, is_one_split
from .moments import COLUMNS
from .names import find_builder, local_path
from .parquet import ParquetSource
from .retries import SourceError, retried
from .revision import LOCAL_PREFIX
from .sequential import DAMAGE, SequentialSource
from .tars import stream_tars

__all__ = ["FilesSource", "ImageSource", "ParquetSource", "SequentialSource", "open_images"]

BINARY = {"binary", "large_binary"}
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

    A local folder with class folders of images is read file by file, see `find_image_folder`. Everything else is opened
    by `datasets`.

    Args:
        name: Folder, file, pattern of files such as `shards/*.parquet`, or id on the Hub.
        split: Split of the data set, such as "train".
        image_column: Column that holds the images: a `datasets.Image`, or the bytes of image files.
        label_column: Column that holds the classes: a `datasets.ClassLabel`, whole numbers or texts.
        config_name: Configuration of a data set that has several.
        revision: Branch, tag or commit on the Hub. For local files, the `revision` of the source as it was opened
            before: the files are compared with it.
        class_names: Names of the classes to learn, see `resolve_classes`.
        label_map: Name in the data set -> name of the class, see `resolve_classes`.

    Raises:
        ValueError: If a column is missing or of another type (the message lists the columns), if a class is unknown, if
            a folder cannot be understood, or if local files are not those of `revision`.
        SourceError: If a file is not there or cannot be read.
    """
    name = local_path(name)
    folder = find_image_folder(name, split, label_column) if image_column == "image" else None
    if folder is not None and config_name is not None:
        raise ValueError(f"dataset_config_name={config_name!r}: the folder {name} has no configurations, leave it out")
    source: ImageSource
    if folder is not None:
        feature = ClassLabel(names=folder.class_names)
        source = FilesSource.of_folder(folder, resolve_classes(feature, "label", class_names, label_map))
    else:
        columns = (image_column, label_column)
        source = _open_with_datasets(name, split, columns, config_name, revision, (class_names, label_map))
    if revision and not revision.startswith(LOCAL_PREFIX) and source.revision.startswith(LOCAL_PREFIX):
        raise ValueError(f"dataset_revision={revision!r} is a version on the Hub, and {name} is local: leave it out")
    if revision and revision.startswith(LOCAL_PREFIX) and revision != source.revision:
        raise ValueError(
            f"{name} has changed: it was {revision} and is {source.revision}; put the files back, or leave out "
            "--dataset_revision"
        )
    return source


def _open_with_datasets(
    name: str,
    split: str,
    columns: tuple[str, str],
    config_name: str | None,
    revision: str | None,
    choice: tuple[Sequence[str] | None, Mapping[str, str] | None],
) -> ImageSource:
    whole = Path(name) if split == "train" and os.path.isdir(name) and is_one_split(Path(name), SPLIT_OF_WORD) else None
    builder = find_builder(name, config_name, revision, is_one_split=whole is not None)
    dataset = _open_split(name, builder, split)
    features, (image_column, label_column) = dataset.features, columns
    if latent_columns := [column for column in COLUMNS if column in features]:
        label_column = "label"
    else:
        _check_columns(name, features, image_column, label_column)
    classes = resolve_classes(features[label_column], label_column, *choice)
    files = [str(path) for path in (builder.config.data_files or {}).get(split, [])]
    if builder.name == "parquet" and files:
        return ParquetSource(files, latent_columns or [image_column], label_column, classes)
    if builder.name == "webdataset" and files:
        dataset = stream_tars(builder, files, features)
    dataset = _two_columns(dataset, image_column, label_column)
    listed = _list_files(dataset, classes, whole) if builder.name == "imagefolder" else None
    return listed or SequentialSource(dataset, files, classes)


def _open_split(name: str, builder: DatasetBuilder, split: str) -> IterableDataset:
    """Open a split, whose first rows may be read to learn its columns."""
    try:
        dataset = retried(lambda: builder.as_streaming_dataset(split=split), f"the data set {name}")
        return dataset if dataset.features is not None else dataset._resolve_features()
    except DAMAGE as error:
        if isinstance(error, ValueError) and "split" in str(error):  # one that the data set does not have
            raise
        first = next(iter((builder.config.data_files or {}).get(split, [])), name)
        raise SourceError(f"the first rows of {first} cannot be read: {reason_of(error)}") from error


def _check_columns(name: str, features: Any, image_column: str, label_column: str) -> None:
    types = {
        column: feature.dtype if isinstance(feature, Value) else type(feature).__name__
        for column, feature in features.items()
    }
    unpack = "; if it holds folders of images, unpack it and pass the folder" if ARCHIVE.search(name) else ""
    image = features.get(image_column)
    is_stored_image = isinstance(image, dict) and set(image) == {"bytes", "path"}  # parquet that others wrote
    if not (isinstance(image, Image) or is_stored_image or types.get(image_column) in BINARY):
        raise ValueError(
            f"{name} has no column {image_column!r} of type Image; its columns are {types}: set --image_column{unpack}"
        )
    if label_column not in features:
        raise ValueError(f"{name} has no column {label_column!r}; its columns are {types}: set --label_column{unpack}")


def _two_columns(dataset: IterableDataset, image_column: str, label_column: str) -> IterableDataset:
    """Keep the images, not decoded, and the labels, under the names "image" and "label"."""
    dataset = dataset.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))
    renamed = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return dataset.rename_columns(renamed) if renamed else dataset


def _list_files(dataset: IterableDataset, classes: Classes, whole: Path | None) -> FilesSource | None:
    """Return the files of a folder of images; None if `datasets` hands over their bytes only.

    Args:
        dataset: Rows of the folder.
        classes: Classes of the data set.
        whole: Folder, all of whose images should have rows; None if it has splits.
    """
    rows, other_labels = [], Counter[str]()
    for row in dataset:
        path = row["image"]["path"]
        if row["image"]["bytes"] is not None:
            return None
        label = classes.find(row["label"], path)
        if label is not None:
            rows.append((path, label))
        else:
            other_labels[str(row["label"])] += 1
    return FilesSource(rows, classes, description=describe_rows(rows, other_labels, classes.names, whole))
