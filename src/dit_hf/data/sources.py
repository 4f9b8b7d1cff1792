"""Opening a data set of labelled images, or of latents made beforehand, by any name or path that `datasets` knows."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from datasets import DatasetBuilder, Image, IterableDataset, Value, load_dataset_builder
from huggingface_hub.errors import HTTPError

from .labels import Classes, resolve_classes
from .moments import COLUMNS
from .parquet import ParquetSource, find_revision
from .retries import retried
from .rows import Rows

logger = logging.getLogger(__name__)

BINARY = {"binary", "large_binary"}
FILES_OF_A_PART = 256
PLAIN_FILES = {".parquet": "parquet", ".tar": "webdataset"}  # suffix -> the reader of `datasets`


class FilesSource:
    """Single image files, each read when it is needed: all are shuffled together.

    Args:
        rows: (path or address, class) of each.
        classes: of the set.
    """

    num_streams, in_memory, latents = 1, True, None

    def __init__(self, rows: Sequence[tuple[str, int]], classes: Classes) -> None:
        self.classes = classes
        self.paths, labels = [path for path, _ in rows], [label for _, label in rows]
        if not rows:
            raise ValueError(f"the data set has no row of the {len(classes.names)} classes asked for")
        values = [{"bytes": None, "path": path} for path in self.paths]
        self._rows = Rows([values], labels, [(k, 0) for k in range(len(rows))], self.paths)
        self.group_sizes, self.window = np.array([len(rows)], dtype=np.int64), len(rows)
        self.revision = find_revision(self.paths, [""] * len(rows))

    @property
    def num_parts(self) -> int:
        """Parts that can be read each by itself, in the order of the files."""
        return -(-len(self._rows) // FILES_OF_A_PART)

    def read(self, group: int) -> Rows:
        """All rows; their bytes are read when asked for."""
        return self._rows

    def read_part(self, part: int) -> Iterator[Rows]:
        """The rows of a part."""
        yield self._rows.cut(part * FILES_OF_A_PART, (part + 1) * FILES_OF_A_PART)


class SequentialSource:
    """Rows that can only be read one after another, from the beginning of a shard: webdataset tars and the like.

    Args:
        dataset: with the columns "image", not decoded, and "label".
        shard_names: what each shard is called.
        classes: which rows are taken, and under which class.
    """

    num_streams, window, latents = 1, 2048, None

    def __init__(self, dataset: IterableDataset, shard_names: Sequence[str], classes: Classes) -> None:
        self.dataset, self.classes = dataset, classes
        self.num_shards = self.num_parts = dataset.num_shards
        self.shard_names = (
            list(shard_names) if len(shard_names) == self.num_shards else ["the data set"] * self.num_shards
        )
        self.revision = find_revision(shard_names, [""] * len(shard_names))
        logger.warning(
            "this data set has no row groups: every process and worker reads all of its bytes, and a resumed run reads "
            "the epoch again up to where it stopped; as parquet it does neither"
        )

    def read_part(self, part: int) -> Iterator[Rows]:
        """The rows of a shard, some at a time."""
        rows = self.rows(part)
        while held := list(islice(rows, FILES_OF_A_PART)):
            yield self.group(held)

    def group(self, held: Sequence[tuple[Any, int, tuple[int, int]]]) -> Rows:
        """What `rows` gave, together."""
        values, labels, numbers = zip(*held, strict=True)
        return Rows([values], labels, numbers, self.shard_names)

    def rows(self, shard: int) -> Iterator[tuple[Any, int, tuple[int, int]]]:
        """(image, class, (shard, row)) of the chosen rows of a shard; goes on where the network interrupts it."""
        source = self.dataset.shard(num_shards=self.num_shards, index=shard)
        number = 0
        examples: Iterator[tuple[Any, Any]] | None = None  # from row `number` on; None after an interruption

        def begin() -> Iterator[tuple[Any, Any]]:
            # `iter` where `__iter__` would split the shard over workers, each of which follows the whole order
            pairs = (pair for chunk in source.iter(64) for pair in zip(chunk["image"], chunk["label"], strict=True))
            return islice(pairs, number, None)

        def read() -> tuple[Any, Any] | None:
            nonlocal examples
            try:
                examples = examples or begin()
                return next(examples, None)
            except (HTTPError, OSError):
                examples = None  # an iterator that failed has ended, and would pass for the shard's end
                raise

        while pair := retried(read, self.shard_names[shard]):
            image, label = pair
            found = self.classes.find(label, f"row {number} of {self.shard_names[shard]}")
            if found is not None:
                yield image, found, (shard, number)
            number += 1


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
    """Open a data set of labelled images; nothing is decoded, and of parquet shards only the ends are read.

    Args:
        name: id on the Hub, a folder, or a pattern of files such as `shards/*.parquet` or `shards/*.tar`.
        split: for example "train".
        image_column: a `datasets.Image`, or the bytes of image files.
        label_column: a `datasets.ClassLabel`, whole numbers or texts.
        config_name: of a data set that has several.
        revision: branch, tag or commit on the Hub; of local shards what `revision` of the source was, to check them.
        class_names: the classes to learn, see `resolve_classes`.
        label_map: name in the data set -> name here, see `resolve_classes`.

    Raises:
        ValueError: if a column is missing or of another type (the message lists those there are), a class is unknown,
            or local shards are not those of `revision`.
        SourceError: if a shard cannot be read.
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
    if revision and revision.startswith("files-") and revision != source.revision:
        raise ValueError(f"{name} has changed: it was {revision} and is {source.revision}; put the files back")
    return source


def _find_builder(name: str, config_name: str | None, revision: str | None) -> DatasetBuilder:
    reader = PLAIN_FILES.get(os.path.splitext(name)[1])
    if reader:
        return load_dataset_builder(reader, config_name, data_files=name)
    commit = None if revision and revision.startswith("files-") else revision
    return retried(lambda: load_dataset_builder(name, config_name, revision=commit), f"the data set {name}")


def _check_columns(name: str, features: Any, image_column: str, label_column: str) -> None:
    found = {
        column: feature.dtype if isinstance(feature, Value) else type(feature).__name__
        for column, feature in features.items()
    }
    image = features.get(image_column)
    stored = isinstance(image, dict) and set(image) == {"bytes", "path"}  # parquet without the note of `datasets`
    if not (isinstance(image, Image) or stored or found.get(image_column) in BINARY):
        raise ValueError(
            f"{name} has no column {image_column!r} of type Image; its columns are {found}: set --image_column"
        )
    if label_column not in features:
        raise ValueError(f"{name} has no column {label_column!r}; its columns are {found}: set --label_column")


def _two_columns(dataset: IterableDataset, image_column: str, label_column: str) -> IterableDataset:
    dataset = dataset.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))
    renamed = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return dataset.rename_columns(renamed) if renamed else dataset


def _list_files(dataset: IterableDataset, classes: Classes) -> FilesSource | None:
    """The files of a folder of images; None where `datasets` hands out their bytes only."""
    rows = []
    for row in dataset:
        path = row["image"]["path"]
        if row["image"]["bytes"] is not None:
            return None
        label = classes.find(row["label"], path)
        if label is not None:
            rows.append((path, label))
    return FilesSource(rows, classes)
