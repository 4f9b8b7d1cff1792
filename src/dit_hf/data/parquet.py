"""The row groups of parquet shards, local or remote, each read by itself."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .labels import Classes
from .moments import LatentsInfo
from .retries import SourceError, retried
from .rows import Rows

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"@([0-9a-f]{40})/")
FOOTERS_TOGETHER = 16
IN_MEMORY_BYTES = 256 * 2**20  # data sets up to this size are read once
NUM_STREAMS = 192  # 64 * 3: most numbers of processes x workers divide it
STREAM_BYTES = 4 * 2**30  # of one row group of each stream, over all processes
STREAM_ROWS = 64  # a stream is at least so long
WINDOW = 16384  # rows that are shuffled together, over all streams


def find_revision(files: Sequence[str], contents: Sequence[str]) -> str:
    """The commit on the Hub that all addresses name, or "files-" and a hash of what the files are called and hold."""
    commits = {found[1] if (found := COMMIT.search(file)) else None for file in files}
    if len(commits) == 1 and (commit := commits.pop()):
        return commit
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    lines = [f"{os.path.relpath(file, root)} {content}" for file, content in zip(files, contents, strict=True)]
    return f"files-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:40]}"


class _Group(NamedTuple):
    file: int
    row_group: int
    first_row: int  # in the file
    rows: np.ndarray | None  # the chosen ones, counted in the group; None for all


class ParquetSource:
    """Row groups of some columns of parquet files.

    Args:
        files: paths or addresses that fsspec opens.
        columns: of images, or of latents.
        label_column: of classes.
        classes: which rows are taken, and under which class.

    Raises:
        SourceError: if a file cannot be read, is no parquet, or lacks a column.
        ValueError: if no row is left.
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
        self._groups = self._find_groups()
        sizes = [self._num_rows(group) for group in self._groups]
        self._groups = [group for group, size in zip(self._groups, sizes, strict=True) if size]
        self.group_sizes = np.array([size for size in sizes if size], dtype=np.int64)
        if not self._groups:
            raise ValueError(f"the data set has no row of the {len(classes.names)} classes asked for")
        sizes_in_file = [
            [footer.row_group(k).total_byte_size for k in range(footer.num_row_groups)] for footer in self._footers
        ]
        self.revision = find_revision(
            files, [f"{footer.num_rows} {sizes}" for footer, sizes in zip(self._footers, sizes_in_file, strict=True)]
        )

    @property
    def in_memory(self) -> bool:
        """Whether the rows are few enough to be kept once they were read, and to be shuffled all together."""
        return self.num_bytes <= IN_MEMORY_BYTES

    @property
    def window(self) -> int:
        """Rows that are shuffled together."""
        return int(self.group_sizes.sum()) if self.in_memory else WINDOW

    @property
    def num_streams(self) -> int:
        """Streams that the order is cut into: one for what fits in memory, else as many as memory allows."""
        streams, group_bytes = NUM_STREAMS, self.num_bytes / len(self._groups)
        if self.in_memory:
            return 1
        while streams > 1 and (streams * group_bytes > STREAM_BYTES or self.group_sizes.sum() < STREAM_ROWS * streams):
            streams //= 2
        return streams

    @property
    def num_parts(self) -> int:
        """Parts that can be read each by itself: row groups, in the order of the files."""
        return len(self._groups)

    def read_part(self, part: int) -> Iterator[Rows]:
        """The rows of a part."""
        yield self.read(part)

    def read(self, group: int) -> Rows:
        """Read a row group, again where the network fails.

        Raises:
            SourceError: if it cannot be read, or its file has changed; the message names the shard.
            ValueError: if a label is none of the classes.
        """
        file, row_group, first_row, chosen = self._groups[group]
        table = retried(lambda: self._read_table(file, row_group), f"row group {row_group} of {self.files[file]}")
        if chosen is not None:
            table = table.take(pa.array(chosen))
        numbers = [(file, first_row + int(row)) for row in (range(len(table)) if chosen is None else chosen)]
        rows = Rows([table[column].combine_chunks() for column in self.columns], [], numbers, self.shard_names)
        found = [self.classes.find(label, rows.key(k)) for k, label in enumerate(table[self.label_column].to_pylist())]
        rows.labels = [label for label in found if label is not None]
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
        return system.open(path, "rb", cache_type="none")  # arrow asks for each range once: a cache would read more

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
        """What the latents in the files were made of; None for images."""
        found = [LatentsInfo.from_footer(footer.metadata) for footer in self._footers]
        if other := [file for file, info in zip(self.files, found, strict=True) if info != found[0]]:
            raise SourceError(f"{other[0]} holds latents made otherwise than those of {self.files[0]}: keep them apart")
        return found[0]

    def _bytes(self, footer: pq.FileMetaData, group: int) -> int:
        row_group = footer.row_group(group)
        chunks = [row_group.column(k) for k in range(row_group.num_columns)]
        return sum(
            chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in self.columns
        )

    def _find_groups(self) -> list[_Group]:
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
            labels = [part for parts in pool.map(self._read_labels, range(len(self.files))) for part in parts]
        return [group._replace(rows=rows) for group, rows in zip(groups, labels, strict=True)]

    def _read_labels(self, file: int) -> list[np.ndarray]:
        """The chosen rows of each row group of a file."""

        def read() -> list[Any]:
            with self._open(file) as opened:
                return (
                    pq.ParquetFile(opened, pre_buffer=True).read([self.label_column], use_threads=False)[0].to_pylist()
                )

        wanted, footer = self.classes.numbers, self._footers[file]
        labels = retried(read, f"the labels of {self.files[file]}")
        ends = np.cumsum([footer.row_group(k).num_rows for k in range(footer.num_row_groups)])
        chosen = np.array([label in wanted for label in labels], dtype=bool)
        return [np.flatnonzero(part) for part in np.split(chosen, ends[:-1])[: len(ends)]]  # a file may have no group

    def _num_rows(self, group: _Group) -> int:
        whole = self._footers[group.file].row_group(group.row_group).num_rows
        return whole if group.rows is None else len(group.rows)

    def _local_size(self, path: str) -> tuple[int, int] | None:
        """Size and time of change of a local file; of a remote one the address names the version."""
        if "://" in path:
            return None
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return (-1, -1)
        return found.st_size, found.st_mtime_ns
