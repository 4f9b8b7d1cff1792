"""A data set whose rows can only be read one after another: webdataset tars and other formats without row groups."""

import logging
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from datasets import IterableDataset
from huggingface_hub.errors import HTTPError

from ..network import reason_of
from .labels import Classes
from .retries import SourceError, retried
from .revision import find_revision
from .rows import Rows

logger = logging.getLogger(__name__)

Example = dict[str, Any]

ROWS_TOGETHER = 256  # of a shard that is read whole
# What readers have been seen to raise on damaged files. Arrow's errors are ValueErrors.
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, RuntimeError,
)  # fmt: skip


class SequentialSource:
    """Rows that can only be read from the beginning of a shard on.

    Args:
        dataset: Streamed data set with the columns "image", not decoded, and "label".
        shard_names: Name of each shard for messages.
        classes: Classes of the data set, which also say which rows are taken.
    """

    num_streams, window, latents = 1, 2048, None

    def __init__(self, dataset: IterableDataset, shard_names: Sequence[str], classes: Classes) -> None:
        self.dataset, self.classes = dataset, classes
        self.num_shards = self.num_parts = dataset.num_shards
        has_names = len(shard_names) == self.num_shards
        self.shard_names = list(shard_names) if has_names else ["the data set"] * self.num_shards
        self.revision = find_revision(shard_names, classes.names)
        self.description = f"{self.num_shards} shards of {len(classes.names)} classes"
        logger.warning(
            "this data set has no row groups: every process and worker reads all of its bytes, and a resumed run reads "
            "the epoch again up to where it stopped; as parquet it does neither"
        )

    def read_part(self, part: int) -> Iterator[Rows]:
        """Yield the rows of a shard, some at a time."""
        rows = self.rows(part)
        while held := list(islice(rows, ROWS_TOGETHER)):
            yield self.group(held)

    def group(self, held: Sequence[tuple[Any, int, tuple[int, int]]]) -> Rows:
        """Put together rows that the method `rows` yielded."""
        values, labels, numbers = zip(*held, strict=True)
        return Rows([values], labels, numbers, self.shard_names)

    def rows(self, shard: int) -> Iterator[tuple[Any, int, tuple[int, int]]]:
        """Yield (image, class, (shard, row)) of the chosen rows of a shard; continue where the network interrupts it.

        Raises:
            SourceError: If the shard cannot be read, or is damaged; the message names shard and row.
            ValueError: If a label is none of the classes.
        """
        source = self.dataset.shard(num_shards=self.num_shards, index=shard)
        number = 0
        examples: Iterator[Example] | None = None  # from row `number` on; None after an interruption

        def read() -> Example | None:
            nonlocal examples
            try:
                # `iter`, because `__iter__` would split the shard over workers, each of which follows the whole order;
                # one row at a time, so that the number of a row that cannot be read is known
                examples = examples or islice(source.iter(1), number, None)
                return next(examples, None)
            except (HTTPError, OSError):
                examples = None  # an iterator that failed has ended, which would look like the end of the shard
                raise

        while example := self._read_or_name(read, number, shard):
            class_label = self.classes.find(example["label"][0], f"row {number} of {self.shard_names[shard]}")
            if class_label is not None:
                yield example["image"][0], class_label, (shard, number)
            number += 1

    def _read_or_name(self, read: Callable[[], Example | None], number: int, shard: int) -> Example | None:
        """Read a row; if the shard is damaged there, raise an error that names the row."""
        try:
            return retried(read, f"row {number} of {self.shard_names[shard]}")
        except DAMAGE as error:
            row = f"row {number} of {self.shard_names[shard]}"
            raise SourceError(f"{row} cannot be read: {reason_of(error)}") from error
