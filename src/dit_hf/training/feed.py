"""The batches of the next step, fetched before the processes agree to take it.

What goes wrong with the data on one process (a broken shard, a worker that is gone) is then known to all of them
between two steps, where they can save a checkpoint together, and not in the middle of a step, where the others wait.
"""

from collections import deque
from collections.abc import Iterator

from .batch import LatentBatch


class BatchFeed:
    """An iterator over batches that only has those that `fetch` has got.

    Args:
        batches: Batches without end; None instead of a batch if the run was asked to stop while it waited for one.
        batches_per_step: Number of batches that make one optimiser step on this process.
    """

    def __init__(self, batches: Iterator[LatentBatch | None], batches_per_step: int = 1) -> None:
        self.error: Exception | None = None  # what ended the data
        self._batches, self._batches_per_step = batches, batches_per_step
        self._held: deque[LatentBatch] = deque()

    def fetch(self) -> None:
        """Get the batches of one step, if neither a request to stop nor an error comes first; note the error."""
        while self.error is None and len(self._held) < self._batches_per_step:
            try:
                batch = next(self._batches)
            except Exception as error:  # noqa: BLE001 - whatever it is, a checkpoint is saved before it is raised
                self.error = error
                return
            if batch is None:
                return
            self._held.append(batch)

    def __iter__(self) -> Iterator[LatentBatch]:
        while self._held:
            yield self._held.popleft()
