"""The order of the images of an epoch: a function of (seed, epoch, offset) that can be asked anywhere.

The groups of rows (parquet row groups) are permuted and laid end to end; that sequence is cut into C streams of equal
length; the epoch takes one row of each stream in turn. Inside a stream, rows are shuffled within windows of whole
groups. So a process that is given every W-th sample follows C / W streams, and reads their groups only, one after
another; and a restart finds its place by counting.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Place(NamedTuple):
    """Where a sample is found: a row of a group; `stream` and `window` say how long the group is needed."""

    stream: int
    window: int
    group: int
    row: int


class _Window(NamedTuple):
    number: int
    first: int  # of its items in the stream
    places: NDArray[np.int64]  # shuffled places in the epoch's sequence


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
        self._key = [seed, 5, epoch]
        # Epochs follow each other without a gap in the turn of the streams.
        self._phase = epoch * self.total % num_streams
        all_together = num_streams == 1 and window >= self.total
        groups = len(group_sizes)
        self._order = np.arange(groups) if all_together else np.random.default_rng([seed, 0, epoch]).permutation(groups)
        self._ends = np.cumsum(group_sizes[self._order])  # (G,)
        first_offsets = (np.arange(num_streams) - self._phase) % num_streams
        lengths = np.maximum(self.total - first_offsets + num_streams - 1, 0) // num_streams
        self._cuts = np.concatenate([[0], np.cumsum(lengths)])  # (C + 1,)
        self._window_rows = max(1, window // num_streams)
        self._bounds: dict[int, NDArray[np.int64]] = {}  # of the windows of a stream
        self._windows: dict[int, _Window] = {}  # the one in use of each stream

    def locate(self, offset: int) -> Place:
        """The place of the `offset`-th sample of the epoch."""
        stream, item = (offset + self._phase) % self.num_streams, offset // self.num_streams
        window = self._windows.get(stream)
        if window is None or not window.first <= item < window.first + len(window.places):
            window = self._windows[stream] = self._open(stream, item)
        place = window.places[item - window.first]
        nth = int(np.searchsorted(self._ends, place, side="right"))
        start = self._ends[nth - 1] if nth else 0
        return Place(stream, window.number, int(self._order[nth]), int(place - start))

    def _open(self, stream: int, item: int) -> _Window:
        start = self._cuts[stream]
        if stream not in self._bounds:
            self._bounds[stream] = self._window_bounds(stream)
        bounds = self._bounds[stream]
        number = int(np.searchsorted(bounds, start + item, side="right")) - 1
        low, high = bounds[number], bounds[number + 1]
        shuffled = np.random.default_rng([*self._key, stream, number]).permutation(high - low)
        return _Window(number, int(low - start), low + shuffled)

    def _window_bounds(self, stream: int) -> NDArray[np.int64]:
        """Where the windows of a stream begin and end: at ends of groups, after at least `_window_rows` rows."""
        start, stop = self._cuts[stream : stream + 2]
        inside = self._ends[np.searchsorted(self._ends, start, side="right") :]
        bounds = [start]
        for end in inside[inside < stop]:
            if end - bounds[-1] >= self._window_rows:
                bounds.append(end)
        return np.array([*bounds, stop])
