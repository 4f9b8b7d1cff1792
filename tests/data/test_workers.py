"""What the thread of a loader passes on of errors."""

from collections.abc import Iterator

import pytest
from torch.utils.data import IterableDataset

from dit_hf.data.workers import receive, work


class Broken(IterableDataset):
    """Ends with an error of the data, of a kind that the end of a worker may have too."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise self.error


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionError, EOFError, ValueError])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_the_data_is_not_taken_for_the_end_of_a_worker(kind: type[Exception], num_workers: int):
    data = Broken(kind("shard 7 exited unexpectedly"))
    items = receive(work(data, num_workers) if num_workers else iter(data), lambda: False)
    assert next(items) == 1
    with pytest.raises(kind, match="shard 7"):
        next(items)
