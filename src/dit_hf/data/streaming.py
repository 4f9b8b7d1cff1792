"""Endless batches of prepared samples, whose order depends on (seed, epoch, offset) alone.

Every process and every worker prepares its own part of each batch: with W processes of K workers the n-th sample goes
to process n % W, worker n // W % K, which follows the same streams of the order all the time. Batches run across the
end of an epoch: nothing is dropped, and no process runs dry first.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from math import gcd
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..images import BadImage, decode_image
from .moments import unpack
from .order import EpochOrder, SampleLocation
from .preparation import image_to_tensor, jitter, resize_and_crop
from .rows import Rows
from .sources import ImageSource, SequentialSource

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """A place in the endless order of samples: the `offset`-th of an epoch."""

    epoch: int
    offset: int


BEGINNING = Position(0, 0)


class Skipped(NamedTuple):
    """An image that could not be decoded, and in whose place another stands."""

    key: str  # its row and shard
    reason: str


@dataclass
class ImageBatch:
    """Prepared samples of one process, and what their randomness is keyed by."""

    images: Tensor  # (B, 3, S, S) in [-1, 1]; with `are_moments` the VAE's, (B, 2C, h, w)
    class_labels: Tensor  # (B,)
    positions: list[Position]  # of each sample
    identities: list[tuple[int, ...]]  # (shard, row, mirrored, variant): equal identities are equal images
    next_position: Position  # where the next batch begins, over all processes
    skipped: list[Skipped] = field(default_factory=list)  # on this process
    are_moments: bool = False


class ImageStream:
    """Endless batches of prepared samples of one process.

    What a global batch holds depends on the source, `seed`, `batch_size * world_size` and `start` alone. An image that
    cannot be decoded is skipped: in its place stands the next good one of its group of rows, with its own label, so
    that neither workers nor restarts change it; the batch names it in `skipped`.

    Args:
        source: from `open_images`.
        batch_size: samples of a batch on one process.
        resolution: side S of the prepared image, in pixels.
        random_flip: whether to mirror half of the images, drawn anew each epoch.
        num_jitters: number of jittered variants that each image has; 0 for the image as it is.
        seed: of the order and of the augmentation.
        rank: index of this process.
        world_size: number of processes.
        start: where to begin.
        images_seen: before `start`, by all processes.
        bad_images: that were skipped before `start`, by all processes, with the reason of each.
        num_workers: processes that prepare samples, beside this one.
        max_bad_images: share of images that may be skipped; one image always may, unless this is 0.
        worker_init: called in each of these processes as it starts, with its number.
        num_streams: that the order is cut into; what the source finds right unless given.
        window: rows that are shuffled together; likewise.
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
        self.bad_images = dict(bad_images or {})  # key -> reason; of this process, and what it was told of others
        self._parts = _Parts(self)

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield this process's part of each global batch.

        Raises:
            ValueError: for a label outside the classes, and, on a single process, for too many bad images.
            SourceError: if a shard cannot be read.
        """
        stride = self.world_size * max(self.num_workers, 1)
        times = stride // gcd(stride, self.num_streams)
        if times > 1 and self.num_streams > 1 and self.rank == 0:
            logger.warning(
                f"each row group is read {times} times: make processes x workers, here {stride}, a divisor of "
                f"{self.num_streams} to read each once"
            )
        for batch in self._batches():
            self.images_seen += len(batch.positions) * self.world_size
            fresh = {key: reason for key, reason in batch.skipped if key not in self.bad_images}
            for key, reason in fresh.items():
                logger.warning(f"skipped {key}: {reason}")
            self.bad_images |= fresh
            if self.world_size == 1:
                self.check_bad_images()
            yield batch

    def _batches(self) -> Iterator[ImageBatch]:
        if not self.num_workers:
            yield from self._parts.batches(0, 1)
            return
        # The loader has a random generator of its own, as it would draw from the global one.
        loader = DataLoader(
            self._parts,
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator(),
            worker_init_fn=self.worker_init,
        )
        parts = iter(loader)
        while True:
            batch = []
            for _ in range(self.num_workers):
                part = next(parts)
                if isinstance(part, Exception):
                    raise part
                batch.append(part)
            yield _merge(batch)

    def check_bad_images(self) -> None:
        """Judge how many are bad; of several processes, all do at once, when they have told each other.

        Raises:
            ValueError: if they are too many.
        """
        if isinstance(self.source, SequentialSource):  # nobody knows how many there are
            images = max(self.images_seen, 1000)
        else:
            images = self.source.group_sizes.sum()
        share = self.max_bad_images * images
        if len(self.bad_images) > (max(share, 1) if self.max_bad_images else 0):
            listed = "; ".join(f"{key}: {reason}" for key, reason in list(self.bad_images.items())[:5])
            raise ValueError(
                f"{len(self.bad_images)} images cannot be decoded, more than max_bad_images={self.max_bad_images} "
                f"allows: {listed}. Mend or remove them, or allow more"
            )


class _Parts(IterableDataset):
    """What one worker, or the process itself, prepares of each batch."""

    def __init__(self, stream: ImageStream) -> None:
        super().__init__()
        self.stream = stream

    def __iter__(self) -> Iterator[ImageBatch | Exception]:
        """In a worker: errors are handed over whole, as the loader would bury them in a traceback."""
        worker = get_worker_info()
        assert worker is not None
        try:
            yield from self.batches(worker.id, worker.num_workers)
        except (ValueError, OSError) as error:
            yield error

    def batches(self, worker: int, num_workers: int) -> Iterator[ImageBatch]:
        """Yield a part of every batch, in order."""
        stream = self.stream
        residue, stride = stream.rank + stream.world_size * worker, stream.world_size * num_workers
        samples = (_Sequence if isinstance(stream.source, SequentialSource) else _Ordered)(stream)
        size = stream.batch_size * stream.world_size
        for first in count(step=size):
            mine = range(first + (residue - first) % stride, first + size, stride)
            part = [samples.take(n) for n in mine]
            yield self._prepare(part, samples.position_after(first + size - 1))

    def _prepare(self, part: list[tuple[Position, Rows, int]], next_position: Position) -> ImageBatch:
        samples, labels = [], []
        identities: list[tuple[int, ...]] = []
        skipped: list[Skipped] = []
        for position, rows, row in part:
            mirrored, variant = self._draw_augmentation(position)
            sample, row = self._load_next_good(rows, row, mirrored, variant, skipped)
            samples.append(sample)
            labels.append(rows.labels[row])
            identities.append((*rows.numbers[row], mirrored, variant))
        return ImageBatch(
            images=torch.stack(samples) if samples else torch.empty(0),
            class_labels=torch.tensor(labels, dtype=torch.long),
            positions=[position for position, _, _ in part],
            identities=identities,
            next_position=next_position,
            skipped=skipped,
            are_moments=self.stream.source.latents is not None,
        )

    def _draw_augmentation(self, position: Position) -> tuple[bool, int]:
        rng = np.random.default_rng([self.stream.seed, 1, *position])
        mirrored = bool(self.stream.random_flip and rng.random() < 0.5)
        return mirrored, int(rng.integers(self.stream.num_jitters)) if self.stream.num_jitters else 0

    def _load_next_good(
        self, rows: Rows, row: int, mirrored: bool, variant: int, skipped: list[Skipped]
    ) -> tuple[Tensor, int]:
        """The sample of a row, or of the next one that can be decoded among its group's."""
        for candidate in ((row + k) % len(rows) for k in range(len(rows))):
            try:
                return self._load(rows, candidate, mirrored, variant), candidate
            except BadImage as error:
                skipped.append(Skipped(rows.key(candidate), str(error)))
        raise ValueError(f"none of the {len(rows)} images beside {skipped[0].key} can be decoded: {skipped[0].reason}")

    def _load(self, rows: Rows, row: int, mirrored: bool, variant: int) -> Tensor:
        latents = self.stream.source.latents
        if latents:
            return unpack(rows.read(row, int(mirrored)), latents)
        image = resize_and_crop(decode_image(rows.read(row)), self.stream.resolution)
        if self.stream.num_jitters:
            image = jitter(image, np.random.default_rng([self.stream.seed, 4, *rows.numbers[row], variant]))
        tensor = image_to_tensor(image)  # (3, S, S)
        return tensor.flip(-1) if mirrored else tensor


class _Ordered:
    """The samples from the start of a stream on, found by their number; only what is taken is read.

    Row groups are kept for as long as a stream of the order uses them.
    """

    def __init__(self, stream: ImageStream) -> None:
        assert not isinstance(stream.source, SequentialSource)
        self.source, self.start = stream.source, stream.start
        self._options = {"seed": stream.seed, "num_streams": stream.num_streams, "window": stream.window}
        self._order = self._of_epoch(stream.start.epoch)
        self._alive: WeakValueDictionary[int, Rows] = WeakValueDictionary()
        self._in_use: dict[int, tuple[tuple[int, int], dict[int, Rows]]] = {}  # stream -> (epoch, window), its groups

    def take(self, n: int) -> tuple[Position, Rows, int]:
        """The n-th sample, and its row among those of its group."""
        epochs, offset = divmod(self.start.offset + n, self._order.total)
        position = Position(self.start.epoch + epochs, offset)
        if position.epoch != self._order.epoch:
            self._order = self._of_epoch(position.epoch)
        place = self._order.locate(offset)
        return position, self._rows(place), place.row

    def position_after(self, n: int) -> Position:
        """Where a stream goes on that ends with the n-th sample."""
        epochs, offset = divmod(self.start.offset + n, self._order.total)
        return Position(self.start.epoch + epochs, offset + 1)

    def _of_epoch(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.source.group_sizes, epoch=epoch, **self._options)

    def _rows(self, place: SampleLocation) -> Rows:
        if self.source.in_memory:
            groups = self._in_use.setdefault(0, ((0, 0), {}))[1]
        else:
            window, groups = self._in_use.get(place.stream, (None, {}))
            if window != (self._order.epoch, place.window):
                groups = {}
                self._in_use[place.stream] = (self._order.epoch, place.window), groups
        if place.group not in groups:
            rows = self._alive.get(place.group)
            groups[place.group] = self._alive[place.group] = rows if rows is not None else self.source.read(place.group)
        return groups[place.group]


class _Sequence:
    """The same where rows can only be read one after another: shards in random order, rows shuffled within a window."""

    def __init__(self, stream: ImageStream) -> None:
        assert isinstance(stream.source, SequentialSource)
        self.source, self.window, self.seed = stream.source, stream.window, stream.seed
        self._taken = -1
        self._samples = self._walk(stream.start)
        self._last = BEGINNING

    def take(self, n: int) -> tuple[Position, Rows, int]:
        """The n-th sample; numbers must rise."""
        for sample in self._samples:
            self._taken, self._last = self._taken + 1, sample[0]
            if self._taken == n:
                return sample
        raise AssertionError("the walk is endless")

    def position_after(self, n: int) -> Position:
        """Where a stream goes on that ends with the n-th sample."""
        if self._taken < n:
            self.take(n)
        return Position(self._last.epoch, self._last.offset + 1)

    def _walk(self, start: Position) -> Iterator[tuple[Position, Rows, int]]:
        for epoch in count(start.epoch):
            offset = -1
            for offset, found in enumerate(self._shuffled(np.random.default_rng([self.seed, 0, epoch]))):
                if (epoch, offset) >= start:
                    yield Position(epoch, offset), *found
            if offset < 0:
                raise ValueError(f"the data set has no row of the {len(self.source.classes.names)} classes asked for")

    def _shuffled(self, rng: np.random.Generator) -> Iterator[tuple[Rows, int]]:
        rows = (row for shard in rng.permutation(self.source.num_shards).tolist() for row in self.source.rows(shard))
        while held := list(islice(rows, self.window)):
            group = self.source.group(held)
            yield from ((group, k) for k in rng.permutation(len(held)).tolist())


def _merge(parts: list[ImageBatch]) -> ImageBatch:
    """Put the workers' parts of a batch together, in the order of positions."""
    filled = [part for part in parts if part.positions]
    positions = [position for part in filled for position in part.positions]
    identities = [identity for part in filled for identity in part.identities]
    order = sorted(range(len(positions)), key=positions.__getitem__)
    return ImageBatch(
        images=torch.cat([part.images for part in filled])[order],
        class_labels=torch.cat([part.class_labels for part in filled])[order],
        positions=[positions[k] for k in order],
        identities=[identities[k] for k in order],
        next_position=parts[0].next_position,
        skipped=[skip for part in parts for skip in part.skipped],
        are_moments=parts[0].are_moments,
    )
