"""The order of the images of an epoch: a function of (seed, epoch, offset) that can be asked anywhere.

The groups of rows (parquet row groups) are permuted and laid end to end; that sequence is cut into C streams of equal
length; the epoch takes one row of each stream in turn. Inside a stream, rows are shuffled within windows of whole
groups. So a process that is given every W-th sample follows C / W streams, and reads their groups only, one after
another; and a restart finds its place by counting.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SampleLocation(NamedTuple):
    """Where a sample is found: a row of a group; `stream` and `window` say how long the group is needed."""

    stream: int
    window: int
    group: int
    row: int


class _Window(NamedTuple):
    number: int
    first: int  # of its items in the stream
    groups: NDArray[np.int64]
    rows: NDArray[np.int64]


class EpochOrder:
    """The order of one epoch.

    Args:
        group_sizes: number of rows of each group, (G,).
        seed: of the run.
        epoch: counted from 0.
        num_streams: C.
        window: rows that are shuffled together over all streams, at least. Where one stream shuffles all rows together,
            the grouping has no influence.
    """

    def __init__(self, group_sizes: NDArray[np.int64], *, seed: int, epoch: int, num_streams: int, window: int) -> None:
        self.total, self.epoch, self.num_streams = int(group_sizes.sum()), epoch, num_streams
        self._seed, self._sizes = seed, group_sizes
        # Epochs follow each other without a gap in the turn of the streams.
        self._phase = epoch * self.total % num_streams
        self._all_together = num_streams == 1 and window >= self.total
        rng, groups = np.random.default_rng([seed, 0, epoch]), len(group_sizes)
        self._order = np.arange(groups) if self._all_together else rng.permutation(groups)
        self._ends = np.cumsum(group_sizes[self._order])  # (G,)
        self._starts = self._ends - group_sizes[self._order]
        first_offsets = (np.arange(num_streams) - self._phase) % num_streams
        lengths = np.maximum(self.total - first_offsets + num_streams - 1, 0) // num_streams
        self._cuts = np.concatenate([[0], np.cumsum(lengths)])  # (C + 1,)
        self._window_rows = max(1, window // num_streams)
        self._bounds: dict[int, NDArray[np.int64]] = {}  # of the windows of a stream
        self._windows: dict[int, _Window] = {}  # the one in use of each stream

    def locate(self, offset: int) -> SampleLocation:
        """The place of the `offset`-th sample of the epoch."""
        stream, item = (offset + self._phase) % self.num_streams, offset // self.num_streams
        window = self._windows.get(stream)
        if window is None or not window.first <= item < window.first + len(window.rows):
            window = self._windows[stream] = self._open(stream, item)
        nth = item - window.first
        return SampleLocation(stream, window.number, int(window.groups[nth]), int(window.rows[nth]))

    def _open(self, stream: int, item: int) -> _Window:
        start = self._cuts[stream]
        if stream not in self._bounds:
            self._bounds[stream] = self._window_bounds(stream)
        bounds = self._bounds[stream]
        number = int(np.searchsorted(bounds, start + item, side="right")) - 1
        low, high = bounds[number], bounds[number + 1]
        places = np.arange(low, high)
        nth = np.searchsorted(self._ends, places, side="right")  # of the groups in their order
        rows = places - self._starts[nth]
        if not self._all_together:  # else the rows that a cut severs from their group would be its last ones always
            for each in np.unique(nth):
                group = int(self._order[each])
                shuffled = np.random.default_rng([self._seed, 6, self.epoch, group]).permutation(self._sizes[group])
                rows[nth == each] = shuffled[rows[nth == each]]
        mixed = np.random.default_rng([self._seed, 5, self.epoch, stream, number]).permutation(len(places))
        return _Window(number, int(low - start), self._order[nth][mixed], rows[mixed])

    def _window_bounds(self, stream: int) -> NDArray[np.int64]:
        """Where the windows of a stream begin and end: at ends of groups, after at least `_window_rows` rows."""
        start, stop = self._cuts[stream : stream + 2]
        first, last = np.searchsorted(self._ends, [start, stop], side="right")
        bounds = [start]
        for end in self._ends[first:last]:
            if end < stop and end - bounds[-1] >= self._window_rows:
                bounds.append(end)
        return np.array([*bounds, stop])
