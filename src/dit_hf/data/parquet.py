"""The row groups of parquet shards, local or remote, each read by itself.

A parquet file holds its rows in row groups, and ends with a footer that says where each group begins and how many rows
it has. Example: of a shard of 10,000 images in row groups of 100, a process that needs image 4,217 reads the footer
and row group 42, which is a hundredth of the file.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .labels import Classes, describe_left_out, warn_of_empty_classes
from .moments import LatentsInfo
from .retries import SourceError, retried
from .revision import HASHED_BYTES, find_revision, local_contents
from .rows import Rows

logger = logging.getLogger(__name__)

FOOTERS_TOGETHER = 16
IN_MEMORY_BYTES = 256 * 2**20  # a data set up to this size is read once and kept
NUM_STREAMS = 192  # 64 * 3: most numbers of processes x workers divide it
STREAM_BYTES = 4 * 2**30  # memory of one row group of each stream, over all processes
STREAM_ROWS = 64  # least number of rows of a stream
WINDOW = 16384  # rows that are shuffled together, over all streams


class _Group(NamedTuple):
    file: int
    row_group: int
    first_row: int  # number of its first row in the file
    rows: np.ndarray | None  # chosen rows, counted in the group; None for all


class ParquetSource:
    """Row groups of some columns of parquet files.

    Args:
        files: Paths, or addresses that fsspec opens.
        columns: Columns of images, or of latents.
        label_column: Column of classes.
        classes: Classes of the data set, which also say which rows are taken.

    Raises:
        SourceError: If a file cannot be read, is no parquet file, or lacks a column.
        ValueError: If no row is left.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], label_column: str, classes: Classes) -> None:
        self.files, self.columns, self.label_column, self.classes = list(files), list(columns), label_column, classes
        self.shard_names = [file.rsplit("/", 1)[-1] for file in files]
        self._sizes = [self._local_size(file) for file in files]
        with ThreadPoolExecutor(FOOTERS_TOGETHER) as pool:
            self._footers = list(pool.map(self._read_footer, range(len(files))))
        self.num_bytes = sum(
            self._bytes(footer, group) for footer in self._footers for group in range(footer.num_row_groups)
        )
        self.latents = self._find_latents()
        self._label_counts: Counter[Any] = Counter()  # only of a choice of classes, for which the labels are read
        self._groups = self._find_groups()
        sizes = [self._num_rows(group) for group in self._groups]
        self._groups = [group for group, size in zip(self._groups, sizes, strict=True) if size]
        self.group_sizes = np.array([size for size in sizes if size], dtype=np.int64)
        if not self._groups:
            raise ValueError(f"the data set has no row of the {len(classes.names)} classes asked for")
        sizes_in_file = [
            [footer.row_group(k).total_byte_size for k in range(footer.num_row_groups)] for footer in self._footers
        ]
        contents = [f"{footer.num_rows} {sizes}" for footer, sizes in zip(self._footers, sizes_in_file, strict=True)]
        if self.num_bytes <= HASHED_BYTES:  # a replaced image may have the size of the one before
            contents = [f"{content} {whole}" for content, whole in zip(contents, local_contents(files), strict=True)]
        self.revision = find_revision(files, classes.names, contents)
        self.description = f"{self.group_sizes.sum()} images of {len(classes.names)} classes in {len(files)} shards"
        if self._label_counts:
            found = {label: classes.get(label) for label in self._label_counts}
            others = [label for label, known in found.items() if known is None and isinstance(label, str)]
            self.description += describe_left_out({label: self._label_counts[label] for label in others})
            warn_of_empty_classes({known for known in found.values() if known is not None}, classes.names)

    @property
    def in_memory(self) -> bool:
        """Whether the rows are few enough to be kept once they have been read, and to be shuffled all together."""
        return self.num_bytes <= IN_MEMORY_BYTES

    @property
    def window(self) -> int:
        """Number of rows that are shuffled together."""
        return int(self.group_sizes.sum()) if self.in_memory else WINDOW

    @property
    def num_streams(self) -> int:
        """Number of streams of the order: 1 if all rows fit in memory, otherwise as many as memory allows."""
        streams, group_bytes = NUM_STREAMS, self.num_bytes / len(self._groups)
        if self.in_memory:
            return 1
        while streams > 1 and (streams * group_bytes > STREAM_BYTES or self.group_sizes.sum() < STREAM_ROWS * streams):
            streams //= 2
        return streams

    @property
    def num_parts(self) -> int:
        """Number of parts, each of which can be read by itself: row groups, in the order of the files."""
        return len(self._groups)

    def read_part(self, part: int) -> Iterator[Rows]:
        """Yield the rows of a part."""
        yield self.read(part)

    def read(self, group: int) -> Rows:
        """Read a row group, and try again if the network fails.

        Raises:
            SourceError: If it cannot be read, or if its file has changed; the message names the shard.
            ValueError: If a label is none of the classes.
        """
        file, row_group, first_row, chosen = self._groups[group]
        table = retried(lambda: self._read_table(file, row_group), f"row group {row_group} of {self.files[file]}")
        if chosen is not None:
            table = table.take(pa.array(chosen))
        numbers = [(file, first_row + int(row)) for row in (range(len(table)) if chosen is None else chosen)]
        rows = Rows([table[column].combine_chunks() for column in self.columns], [], numbers, self.shard_names)
        stored = table[self.label_column].to_pylist()
        labels = [self.classes.find(label, rows.key(k)) for k, label in enumerate(stored)]
        rows.labels = [label for label in labels if label is not None]
        return rows

    def _read_table(self, file: int, row_group: int) -> pa.Table:
        if self._local_size(self.files[file]) != self._sizes[file]:
            raise SourceError(f"{self.files[file]} has changed or gone since the start: put it back, or start anew")
        columns = [*self.columns, self.label_column]
        try:
            with self._open(file) as opened:
                parquet = pq.ParquetFile(opened, metadata=self._footers[file], pre_buffer=True)
                return parquet.read_row_group(row_group, columns=columns, use_threads=False)
        except pa.ArrowException as error:
            raise SourceError(f"row group {row_group} of {self.files[file]} is damaged: {error}") from error

    def _open(self, file: int) -> Any:
        path = self.files[file]
        if "://" not in path:
            return open(path, "rb")
        system, path = fsspec.url_to_fs(path)
        return system.open(path, "rb", cache_type="none")  # arrow asks for each range once, and a cache reads more

    def _read_footer(self, file: int) -> pq.FileMetaData:
        def read() -> pq.FileMetaData:
            with self._open(file) as opened:
                return pq.ParquetFile(opened).metadata

        try:
            footer = retried(read, self.files[file])
        except pa.ArrowException as error:
            raise SourceError(f"{self.files[file]} is no parquet file: {error}") from error
        names = footer.schema.to_arrow_schema().names
        if missing := {*self.columns, self.label_column} - set(names):
            raise SourceError(f"{self.files[file]} has no column {min(missing)!r}; its columns are {names}")
        return footer

    def _find_latents(self) -> LatentsInfo | None:
        """Return how the latents in the files were extracted; None for images."""
        infos = [LatentsInfo.from_footer(footer.metadata) for footer in self._footers]
        if differing := [file for file, info in zip(self.files, infos, strict=True) if info != infos[0]]:
            raise SourceError(
                f"the latents of {differing[0]} were extracted in another way than those of {self.files[0]}: keep the "
                "two data sets in different folders"
            )
        return infos[0]

    def _bytes(self, footer: pq.FileMetaData, group: int) -> int:
        """Return the size of the columns of a row group, compressed."""
        row_group = footer.row_group(group)
        chunks = [row_group.column(k) for k in range(row_group.num_columns)]
        return sum(
            chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in self.columns
        )

    def _find_groups(self) -> list[_Group]:
        """List the row groups of all files; for a choice of classes, with the rows of these classes."""
        groups = []
        for file, footer in enumerate(self._footers):
            first_row = 0
            for row_group in range(footer.num_row_groups):
                groups.append(_Group(file, row_group, first_row, None))
                first_row += footer.row_group(row_group).num_rows
        if self.classes.complete:
            return groups
        logger.info(f"looking for the rows of {len(self.classes.names)} classes in {len(self.files)} shards")
        with ThreadPoolExecutor(FOOTERS_TOGETHER) as pool:
            read = list(pool.map(self._read_labels, range(len(self.files))))
        for _, counts in read:
            self._label_counts += counts
        chosen = [part for parts, _ in read for part in parts]
        return [group._replace(rows=rows) for group, rows in zip(groups, chosen, strict=True)]

    def _read_labels(self, file: int) -> tuple[list[np.ndarray], Counter[Any]]:
        """Return the chosen rows of each row group of a file, and how many rows each label has."""

        def read() -> list[Any]:
            with self._open(file) as opened:
                return (
                    pq.ParquetFile(opened, pre_buffer=True).read([self.label_column], use_threads=False)[0].to_pylist()
                )

        footer = self._footers[file]
        labels = retried(read, f"the labels of {self.files[file]}")
        ends = np.cumsum([footer.row_group(k).num_rows for k in range(footer.num_row_groups)])
        chosen = np.array([self.classes.get(label) is not None for label in labels], dtype=bool)
        parts = np.split(chosen, ends[:-1])[: len(ends)]  # none for a file without row groups
        return [np.flatnonzero(part) for part in parts], Counter(labels)

    def _num_rows(self, group: _Group) -> int:
        whole = self._footers[group.file].row_group(group.row_group).num_rows
        return whole if group.rows is None else len(group.rows)

    def _local_size(self, path: str) -> tuple[int, int] | None:
        """Return size and time of change of a local file; None for a remote one, whose address names its version."""
        if "://" in path:
            return None
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return (-1, -1)
        return status.st_size, status.st_mtime_ns
