"""What the workers of a loader send, waited for in short turns, so that a worker that cannot answer hangs nothing.

Workers hand tensors over in shared memory, which is a file system of its own, `/dev/shm`. Docker gives it 64 MB by
default, and a batch of 64 images of 256 px has 50 MB. A worker that finds no room there sends an error.
"""

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from .retries import SourceError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # between two looks whether to stop waiting
LONG_SECONDS = 60  # of waiting, after which it is logged
CLOSE_SECONDS = 5  # that the end of the workers is waited for


def receive(
    dataset: IterableDataset[Any],
    num_workers: int,
    worker_init: Callable[[int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """Yield what the workers make, turn by turn: an item of worker 0, one of worker 1, and so on.

    A thread talks to the workers, because this cannot be interrupted: a worker that hangs in the middle of handing over
    a tensor would hang the main thread.

    Args:
        dataset: What each worker iterates over.
        num_workers: Number of workers, at least 1.
        worker_init: Function that each worker calls with its index when it starts.
        is_stopped: Function that says whether to stop waiting. If it does, None is yielded instead of an item; the next
            call waits on.

    Raises:
        SourceError: If a worker is gone, for example ended by the kernel because memory ran out.
    """
    received: queue.Queue[Any] = queue.Queue(maxsize=1)
    is_closed = threading.Event()
    thread = threading.Thread(target=_fetch, args=(_start(dataset, num_workers, worker_init), received, is_closed))
    thread.daemon = True
    thread.start()
    since = time.monotonic()
    try:
        while True:
            try:
                item = received.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if is_stopped():
                    yield None
                elif time.monotonic() - since > LONG_SECONDS:
                    logger.warning(f"no batch for {LONG_SECONDS} s from {num_workers} loader workers")
                    since = time.monotonic()
                continue
            if isinstance(item, _Failure):
                raise item.explain() from item.error
            yield item
            since = time.monotonic()
    finally:
        is_closed.set()
        thread.join(CLOSE_SECONDS)


class _Failure:
    """An error that the thread met."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def explain(self) -> Exception:
        """Return the error; if it is how a worker's end shows itself, one that says so."""
        shows_an_end = isinstance(self.error, ConnectionError | FileNotFoundError | EOFError)  # of its shared memory
        if shows_an_end or "exited unexpectedly" in str(self.error):
            return SourceError(
                f"a loader worker is gone ({self.error}), as the kernel ends one if memory runs out: lower "
                "--dataloader_num_workers, or give the machine or the container more memory"
            )
        return self.error


def _start(dataset: IterableDataset[Any], num_workers: int, worker_init: Callable[[int], None] | None) -> Iterator[Any]:
    """Start the workers, without torch's handler of SIGCHLD.

    The handler raises an error when a worker dies, in whatever the main thread is doing, such as half of a step.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),  # its own, because a loader without one draws from the global generator
        worker_init_fn=worker_init,
    )
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return items


def _fetch(items: Iterator[Any], received: "queue.Queue[Any]", is_closed: threading.Event) -> None:
    """In the thread: pass on what the workers make, until they fail or nobody wants it."""
    while not is_closed.is_set():
        try:
            item = next(items)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            item = _Failure(error)
        while not is_closed.is_set():
            try:
                received.put(item, timeout=LOOK_SECONDS)
                break
            except queue.Full:
                continue
        if isinstance(item, _Failure):
            return


def share(tensor: torch.Tensor) -> None:
    """Put a tensor into shared memory here, where an error can be sent, and not in the thread that sends items.

    Raises:
        SourceError: If there is no room for it.
    """
    try:
        tensor.share_memory_()
    except RuntimeError as error:
        num_bytes = tensor.numel() * tensor.element_size()
        raise SourceError(
            f"a loader worker has no room in shared memory (/dev/shm) for {num_bytes / 2**20:.2f} MiB of a batch: "
            "lower --dataloader_num_workers or --train_batch_size, or give the container more by --shm-size"
        ) from error
