"""The order of the images of an epoch, as a function of (seed, epoch, offset) that can be evaluated at any offset.

Example: four row groups A, B, C, D of three rows each, and two streams.

    1. Permute the groups:                  C A D B
    2. Cut their rows into equal streams:   stream 0: C0 C1 C2 A0 A1 A2     stream 1: D0 D1 D2 B0 B1 B2
    3. Shuffle the rows of each window:     stream 0: A1 C0 C2 A0 C1 A2     stream 1: B2 D1 D0 B1 D2 B0
    4. Take one row of each stream in turn: A1 B2 C0 D1 C2 D0 A0 B1 C1 D2 A2 B0

A window is a run of whole groups whose rows are shuffled together; here, a stream has one window of two groups. A
larger window mixes better and holds more groups in memory.

The order is elastic: it does not depend on the number of processes. One process takes all samples; with two processes,
process 0 takes the samples 0, 2, 4 ..., which are stream 0, and so reads the groups C and A only. A run that is
restarted with another number of processes computes where it stopped, and continues the same order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SampleLocation(NamedTuple):
    """Row of a group that holds a sample; `stream` and `window` tell how long the group is needed."""

    stream: int
    window: int
    group: int
    row: int


class _Window(NamedTuple):
    number: int
    first: int  # index of its first row in the stream
    groups: NDArray[np.int64]  # group of each shuffled row
    rows: NDArray[np.int64]  # row in that group


class EpochOrder:
    """The order of one epoch.

    Args:
        group_sizes: Number of rows of each group, (G,).
        seed: Seed of the run.
        epoch: Number of the epoch, counted from 0.
        num_streams: Number of streams C.
        window: Number of rows, over all streams, that are shuffled together at least. If there is one stream and its
            window holds all rows, the order does not depend on how the rows are grouped.
    """

    def __init__(self, group_sizes: NDArray[np.int64], *, seed: int, epoch: int, num_streams: int, window: int) -> None:
        self.total, self.epoch, self.num_streams = int(group_sizes.sum()), epoch, num_streams
        self._seed, self._sizes = seed, group_sizes
        # The turn of the streams goes on from the last epoch. Example: of 5 rows and 2 streams, epoch 0 ends with
        # stream 0, so that epoch 1 begins with stream 1: sample n always belongs to stream n modulo C.
        self._phase = epoch * self.total % num_streams
        self._is_one_window = num_streams == 1 and window >= self.total
        rng, groups = np.random.default_rng([seed, 0, epoch]), len(group_sizes)
        self._order = np.arange(groups) if self._is_one_window else rng.permutation(groups)
        self._ends = np.cumsum(group_sizes[self._order])  # (G,)
        self._starts = self._ends - group_sizes[self._order]
        first_offsets = (np.arange(num_streams) - self._phase) % num_streams
        lengths = np.maximum(self.total - first_offsets + num_streams - 1, 0) // num_streams
        self._cuts = np.concatenate([[0], np.cumsum(lengths)])  # (C + 1,)
        self._window_rows = max(1, window // num_streams)
        self._bounds: dict[int, NDArray[np.int64]] = {}  # stream -> where its windows begin and end
        self._windows: dict[int, _Window] = {}  # stream -> its window that was used last

    def locate(self, offset: int) -> SampleLocation:
        """Return where the sample at an offset of the epoch is stored."""
        stream, item = (offset + self._phase) % self.num_streams, offset // self.num_streams
        window = self._windows.get(stream)
        if window is None or not window.first <= item < window.first + len(window.rows):
            window = self._windows[stream] = self._shuffle_window(stream, item)
        nth = item - window.first
        return SampleLocation(stream, window.number, int(window.groups[nth]), int(window.rows[nth]))

    def _shuffle_window(self, stream: int, item: int) -> _Window:
        """Shuffle the window of a stream that holds its row number `item`."""
        start = self._cuts[stream]
        if stream not in self._bounds:
            self._bounds[stream] = self._window_bounds(stream)
        bounds = self._bounds[stream]
        number = int(np.searchsorted(bounds, start + item, side="right")) - 1
        low, high = bounds[number], bounds[number + 1]
        positions = np.arange(low, high)  # in the permuted groups, laid end to end
        nth = np.searchsorted(self._ends, positions, side="right")  # index in the permuted groups
        rows = positions - self._starts[nth]
        # A cut between two streams may divide a group. Without a shuffle inside the group, its last rows would always
        # be those that are separated from it.
        if not self._is_one_window:
            for each in np.unique(nth):
                group = int(self._order[each])
                shuffled = np.random.default_rng([self._seed, 6, self.epoch, group]).permutation(self._sizes[group])
                rows[nth == each] = shuffled[rows[nth == each]]
        mixed = np.random.default_rng([self._seed, 5, self.epoch, stream, number]).permutation(len(positions))
        return _Window(number, int(low - start), self._order[nth][mixed], rows[mixed])

    def _window_bounds(self, stream: int) -> NDArray[np.int64]:
        """Return where the windows of a stream begin and end: at ends of groups, at least `_window_rows` rows apart."""
        start, stop = self._cuts[stream : stream + 2]
        first, last = np.searchsorted(self._ends, [start, stop], side="right")
        bounds = [start]
        for end in self._ends[first:last]:
            if end < stop and end - bounds[-1] >= self._window_rows:
                bounds.append(end)
        return np.array([*bounds, stop])
