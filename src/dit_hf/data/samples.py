"""The samples of a source by their number in the endless sequence, which begins where a run begins or is resumed."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from .batches import BEGINNING, Position
from .order import EpochOrder, SampleLocation
from .parquet import ParquetSource
from .rows import Rows
from .sources import FilesSource, ImageSource, SequentialSource


class Samples(Protocol):
    """What a stream of batches asks of the samples of a source."""

    def take(self, n: int) -> tuple[Position, Rows, int]:
        """Return the position of sample `n`, the rows that hold it, and its index among them."""

    def position_after(self, n: int) -> Position:
        """Return where a stream continues whose last sample is number `n`."""


def open_samples(source: ImageSource, start: Position, *, seed: int, num_streams: int, window: int) -> Samples:
    """Return the samples of a source from a position on.

    Args:
        source: Images, from `open_images`.
        start: Position of sample 0.
        seed: Seed of the order.
        num_streams: Number of streams that the order is cut into.
        window: Number of rows that are shuffled together.
    """
    if isinstance(source, SequentialSource):
        return SequentialSamples(source, start, seed=seed, window=window)
    return OrderedSamples(source, start, seed=seed, num_streams=num_streams, window=window)


class OrderedSamples:
    """Samples of a source whose groups of rows can be read in any order; only the groups in use are kept.

    A group is let go when the window of its stream is done. The arguments are those of `open_samples`.
    """

    def __init__(
        self, source: ParquetSource | FilesSource, start: Position, *, seed: int, num_streams: int, window: int
    ) -> None:
        self.source, self.start = source, start
        self._options = {"seed": seed, "num_streams": num_streams, "window": window}
        self._order = self._order_of(start.epoch)
        # stream -> (epoch, window), the groups of that window
        self._in_use: dict[int, tuple[tuple[int, int], dict[int, Rows]]] = {}
        self._alive: WeakValueDictionary[int, Rows] = WeakValueDictionary()  # the groups that any stream uses

    def take(self, n: int) -> tuple[Position, Rows, int]:
        """Return the position of sample `n`, the rows that hold it, and its index among them."""
        epochs, offset = divmod(self.start.offset + n, self._order.total)
        position = Position(self.start.epoch + epochs, offset)
        if position.epoch != self._order.epoch:
            self._order = self._order_of(position.epoch)
        location = self._order.locate(offset)
        return position, self._rows(location), location.row

    def position_after(self, n: int) -> Position:
        """Return where a stream continues whose last sample is number `n`."""
        epochs, offset = divmod(self.start.offset + n, self._order.total)
        return Position(self.start.epoch + epochs, offset + 1)

    def _order_of(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.source.group_sizes, epoch=epoch, **self._options)

    def _rows(self, location: SampleLocation) -> Rows:
        if self.source.in_memory:
            groups = self._in_use.setdefault(0, ((0, 0), {}))[1]
        else:
            window, groups = self._in_use.get(location.stream, (None, {}))
            if window != (self._order.epoch, location.window):
                groups = {}
                self._in_use[location.stream] = (self._order.epoch, location.window), groups
        if (group := location.group) not in groups:
            rows = self._alive.get(group)
            groups[group] = self._alive[group] = rows if rows is not None else self.source.read(group)
        return groups[group]


class SequentialSamples:
    """Samples of a source that can only be read from the beginning of a shard on.

    Shards come in random order, and rows are shuffled within a window. The arguments are those of `open_samples`.
    """

    def __init__(self, source: SequentialSource, start: Position, *, seed: int, window: int) -> None:
        self.source, self.seed, self.window = source, seed, window
        self._taken = -1
        self._samples = self._walk(start)
        self._last = BEGINNING

    def take(self, n: int) -> tuple[Position, Rows, int]:
        """Return the position of sample `n`, the rows that hold it, and its index; `n` must rise from call to call."""
        for sample in self._samples:
            self._taken, self._last = self._taken + 1, sample[0]
            if self._taken == n:
                return sample
        raise AssertionError("the walk is endless")

    def position_after(self, n: int) -> Position:
        """Return where a stream continues whose last sample is number `n`."""
        if self._taken < n:
            self.take(n)
        return Position(self._last.epoch, self._last.offset + 1)

    def _walk(self, start: Position) -> Iterator[tuple[Position, Rows, int]]:
        for epoch in count(start.epoch):
            offset = -1
            for offset, (rows, row) in enumerate(self._shuffled(np.random.default_rng([self.seed, 0, epoch]))):
                if (epoch, offset) >= start:
                    yield Position(epoch, offset), rows, row
            if offset < 0:
                raise ValueError(f"the data set has no row of the {len(self.source.classes.names)} classes asked for")

    def _shuffled(self, rng: np.random.Generator) -> Iterator[tuple[Rows, int]]:
        rows = (row for shard in rng.permutation(self.source.num_shards).tolist() for row in self.source.rows(shard))
        while held := list(islice(rows, self.window)):
            group = self.source.group(held)
            yield from ((group, k) for k in rng.permutation(len(held)).tolist())
