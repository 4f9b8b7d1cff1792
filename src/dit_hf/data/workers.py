"""What a loader makes, waited for in short turns, so that neither a worker nor the network can hang a training.

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


def receive(items: Iterator[Any], is_stopped: Callable[[], bool]) -> Iterator[Any]:
    """Yield what an iterator makes, which a thread asks for it.

    Asking cannot be interrupted: a worker may hang in the middle of handing over a tensor, and a read may wait for the
    network. In the main thread either would delay the end of a training.

    Args:
        items: What is waited for. Its errors are raised here, in their turn.
        is_stopped: Function that says whether to stop waiting. If it does, None is yielded instead of an item; the next
            call waits on.
    """
    received: queue.Queue[Any] = queue.Queue(maxsize=1)
    is_closed = threading.Event()
    thread = threading.Thread(target=_fetch, args=(items, received, is_closed), daemon=True)
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
                    logger.warning(f"no batch from the loader for {LONG_SECONDS} s")
                    since = time.monotonic()
                continue
            if isinstance(item, _Failure):
                raise item.error
            yield item
            since = time.monotonic()
    finally:
        is_closed.set()
        thread.join(CLOSE_SECONDS)


class _Failure:
    """An error that the thread met."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def work(
    dataset: IterableDataset[Any], num_workers: int, worker_init: Callable[[int], None] | None = None
) -> Iterator[Any]:
    """Start workers, and return what they make, turn by turn: an item of worker 0, one of worker 1, and so on.

    Args:
        dataset: What each worker iterates over.
        num_workers: Number of workers, at least 1.
        worker_init: Function that each worker calls with its index when it starts.

    Returns:
        Items. The iterator raises a `SourceError` if a worker is gone, for example ended by the kernel because memory
        ran out.
    """
    return _explain_ends(_start(dataset, num_workers, worker_init))


def _explain_ends(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except (ConnectionError, FileNotFoundError, EOFError, RuntimeError) as error:
        is_of_the_data = "in DataLoader worker process" in str(error)  # so torch begins what a worker has raised
        is_of_torch = isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error)
        if is_of_the_data or is_of_torch:
            raise
        raise SourceError(
            f"a loader worker is gone ({error}), as the kernel ends one if memory runs out: lower "
            "--dataloader_num_workers, or give the machine or the container more memory"
        ) from error


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
    """In the thread: pass on what an iterator makes, until it fails or nobody wants it."""
    while not is_closed.is_set():
        try:
            item = next(items)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
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
