"""Endless batches of prepared samples, whose content depends on (seed, epoch, offset) alone.

Every process, and each of its workers, prepares its own share of each batch: with W processes of K workers, sample n
goes to process n % W and there to worker n // W % K, which therefore follows the same streams of the order all the
time. Example: 2 processes of 2 workers and a global batch of 8:

    process 0, worker 0: samples 0, 4     process 1, worker 0: samples 1, 5
    process 0, worker 1: samples 2, 6     process 1, worker 1: samples 3, 7

Batches continue across the end of an epoch, so that nothing is dropped and all processes take the same number of steps.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from math import gcd

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..images import BadImage, decode_image
from .bad_images import check_bad_images
from .batches import BEGINNING, ImageBatch, Position, Skipped, merge_parts
from .moments import unpack
from .preparation import image_to_tensor, jitter, resize_and_crop
from .rows import Rows
from .samples import open_samples
from .sources import ImageSource, SequentialSource
from .workers import receive, share, work

__all__ = ["BEGINNING", "ImageBatch", "ImageStream", "Position", "Skipped"]

logger = logging.getLogger(__name__)


class ImageStream:
    """Endless batches of prepared samples of one process.

    The content of a global batch depends on the source, `seed`, `batch_size * world_size` and `start` alone. An image
    that cannot be decoded is skipped: the next good image of its group of rows stands in for it, with its own label, so
    that neither workers nor restarts change a batch. If a group has no good image, the first good one of the data set
    stands in. The batch lists the image in `skipped`.

    Args:
        source: Images, from `open_images`.
        batch_size: Number of samples of a batch on one process.
        resolution: Side S of the prepared images, in pixels.
        random_flip: Whether to mirror half of the images, drawn anew in each epoch.
        num_jitters: Number of jittered variants that each image has; 0 for the image as it is.
        seed: Seed of the order and of the augmentation.
        rank: Index of this process.
        world_size: Number of processes.
        start: Position of the first sample.
        images_seen: Number of images that all processes together have trained on before `start`.
        bad_images: Images that any process skipped before `start`, each with the reason.
        num_workers: Number of processes that prepare samples beside this one; 0 to prepare them here.
        max_bad_images: Share of the images that may be skipped, see `allowed_bad_images`.
        worker_init: Function that each worker calls with its index when it starts.
        num_streams: Number of streams that the order is cut into. Default: `source.num_streams`.
        window: Number of rows that are shuffled together. Default: `source.window`.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        resolution: int,
        random_flip: bool = True,
        num_jitters: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: Position = BEGINNING,
        images_seen: int = 0,
        bad_images: Mapping[str, str] | None = None,
        num_workers: int = 0,
        max_bad_images: float = 0.001,
        worker_init: Callable[[int], None] | None = None,
        num_streams: int | None = None,
        window: int | None = None,
    ) -> None:
        self.source = source
        self.batch_size, self.resolution = batch_size, resolution
        self.random_flip, self.num_jitters = random_flip, num_jitters
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start
        self.num_workers, self.max_bad_images = num_workers, max_bad_images
        self.worker_init = worker_init
        self.num_streams, self.window = num_streams or source.num_streams, window or source.window
        self.images_seen = images_seen
        self.bad_images = dict(bad_images or {})  # key -> reason; the caller adds those of other processes
        self._shares = _Shares(self)

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield this process's share of each global batch, and wait for each as long as it takes."""
        return (batch for batch in self.batches(lambda: False) if batch is not None)

    def batches(self, is_stopped: Callable[[], bool]) -> Iterator[ImageBatch | None]:
        """Yield this process's share of each global batch, or None if `is_stopped()` ends the wait for the next one.

        Raises:
            ValueError: If a label is outside the classes, or, on a single process, if too many images are bad.
            SourceError: If a shard cannot be read, or a worker is gone or has no room for its share.
        """
        stride = self.world_size * max(self.num_workers, 1)
        times = stride // gcd(stride, self.num_streams)
        if times > 1 and self.num_streams > 1 and self.rank == 0:
            logger.warning(
                f"each row group is read {times} times: make processes x workers, here {stride}, a divisor of "
                f"{self.num_streams} to read each once"
            )
        for batch in self._batches(is_stopped):
            if batch is None:
                yield None
                continue
            self.images_seen += len(batch.positions) * self.world_size
            fresh = {key: reason for key, reason in batch.skipped if key not in self.bad_images}
            for key, reason in fresh.items():
                logger.warning(f"skipped {key}: {reason}")
            self.bad_images |= fresh
            if self.world_size == 1:
                self.check_bad_images()
            yield batch

    def _batches(self, is_stopped: Callable[[], bool]) -> Iterator[ImageBatch | None]:
        if not self.num_workers:
            yield from receive(self._shares.batches(0, 1), is_stopped)
            return
        batch = []
        for item in receive(work(self._shares, self.num_workers, self.worker_init), is_stopped):
            if item is None:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            batch.append(item)
            if len(batch) == self.num_workers:
                yield merge_parts(batch)
                batch = []

    def check_bad_images(self) -> None:
        """Judge whether too many images are bad.

        If there are several processes, all of them call this method after `bad_images` has been shared.

        Raises:
            ValueError: If more images were skipped than `max_bad_images` allows.
        """
        if isinstance(self.source, SequentialSource):  # whose number of images is not known
            images = max(self.images_seen, 1000)
        else:
            images = int(self.source.group_sizes.sum())
        check_bad_images([f"{key}: {reason}" for key, reason in self.bad_images.items()], self.max_bad_images, images)


class _Shares(IterableDataset):
    """The share of each batch that one worker prepares, or the process itself if it has no workers."""

    def __init__(self, stream: ImageStream) -> None:
        super().__init__()
        self.stream = stream

    def __iter__(self) -> Iterator[ImageBatch | Exception]:
        """Yield the shares of a worker; an error is yielded too, because the loader would wrap it in a traceback."""
        worker = get_worker_info()
        assert worker is not None
        try:
            for batch in self.batches(worker.id, worker.num_workers):
                share(batch.images)
                share(batch.class_labels)
                yield batch
        except (ValueError, OSError) as error:
            yield error

    def batches(self, worker: int, num_workers: int) -> Iterator[ImageBatch]:
        """Yield a worker's share of every batch, in order."""
        stream = self.stream
        residue, stride = stream.rank + stream.world_size * worker, stream.world_size * num_workers
        options = {"seed": stream.seed, "num_streams": stream.num_streams, "window": stream.window}
        samples = open_samples(stream.source, stream.start, **options)
        size = stream.batch_size * stream.world_size
        for first in count(step=size):
            numbers = range(first + (residue - first) % stride, first + size, stride)
            share = [samples.take(n) for n in numbers]
            yield self._prepare(share, samples.position_after(first + size - 1))

    def _prepare(self, share: list[tuple[Position, Rows, int]], next_position: Position) -> ImageBatch:
        samples, labels = [], []
        identities: list[tuple[int, ...]] = []
        skipped: list[Skipped] = []
        for position, rows, row in share:
            mirrored, variant = self._draw_augmentation(position)
            sample, rows, row = self._load_next_good(rows, row, mirrored, variant, skipped)
            samples.append(sample)
            labels.append(rows.labels[row])
            identities.append((*rows.numbers[row], mirrored, variant))
        return ImageBatch(
            images=torch.stack(samples) if samples else torch.empty(0),
            class_labels=torch.tensor(labels, dtype=torch.long),
            positions=[position for position, _, _ in share],
            identities=identities,
            next_position=next_position,
            skipped=skipped,
            are_moments=self.stream.source.latents is not None,
        )

    def _draw_augmentation(self, position: Position) -> tuple[bool, int]:
        """Return whether the sample at a position is mirrored, and which jittered variant of its image is taken."""
        rng = np.random.default_rng([self.stream.seed, 1, *position])
        mirrored = bool(self.stream.random_flip and rng.random() < 0.5)
        return mirrored, int(rng.integers(self.stream.num_jitters)) if self.stream.num_jitters else 0

    def _load_next_good(
        self, rows: Rows, row: int, mirrored: bool, variant: int, skipped: list[Skipped]
    ) -> tuple[Tensor, Rows, int]:
        """Load the sample of a row, or of the image that stands in for it; return where that image is, too."""
        for group, candidate in self._stand_ins(rows, row):
            try:
                return self._load(group, candidate, mirrored, variant), group, candidate
            except BadImage as error:
                skipped.append(Skipped(group.key(candidate), str(error)))
        raise ValueError(f"none of the {len(rows)} images beside {skipped[0].key} can be decoded: {skipped[0].reason}")

    def _stand_ins(self, rows: Rows, row: int) -> Iterator[tuple[Rows, int]]:
        """Yield a row and the rows after it in its group, then those at the beginning of the data set.

        A last group may hold a single image, and that one may be bad.
        """
        yield from ((rows, (row + k) % len(rows)) for k in range(len(rows)))
        first = next(self.stream.source.read_part(0))
        yield from ((first, k) for k in range(len(first)))

    def _load(self, rows: Rows, row: int, mirrored: bool, variant: int) -> Tensor:
        latents = self.stream.source.latents
        if latents:
            return unpack(rows.read(row, int(mirrored)), latents)
        image = resize_and_crop(decode_image(rows.read(row)), self.stream.resolution)
        if self.stream.num_jitters:
            image = jitter(image, np.random.default_rng([self.stream.seed, 4, *rows.numbers[row], variant]))
        tensor = image_to_tensor(image)  # (3, S, S)
        return tensor.flip(-1) if mirrored else tensor
