"""Labelled images from `datasets` in streaming mode, as batches whose order depends on (seed, epoch) alone.

Rows are read shard by shard, the shards in an order drawn from (seed, epoch), and shuffled within a window. Every
process and every worker follows the same order and prepares its own part of it, so neither their number nor a restart
changes what a batch holds. Batches run across the end of an epoch: nothing is dropped, and no process runs dry first.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import ClassLabel, Image, IterableDataset, load_dataset
from torch import Tensor
from torch.utils.data import get_worker_info

from .images import decode_image, image_to_tensor, jitter, resize_and_crop

IN_MEMORY_BYTES = 256 * 2**20  # data sets (or subsets of classes) up to this size are read once


class Row(NamedTuple):
    """One encoded image; `shard` and `row` say where it stands in the source."""

    shard: int
    row: int
    image: bytes
    label: int


class Position(NamedTuple):
    """A place in the endless order of samples: the `offset`-th of an epoch."""

    epoch: int
    offset: int


BEGINNING = Position(0, 0)


@dataclass
class ImageBatch:
    """Prepared images of one process, and what the samples' randomness is keyed by."""

    images: Tensor  # (B, 3, S, S) in [-1, 1]
    class_labels: Tensor  # (B,)
    positions: list[Position]  # of each sample
    identities: list[tuple[int, ...]]  # (shard, row, mirrored, variant): equal identities are equal images
    next_position: Position  # where the next batch begins, over all processes


def open_images(name: str, split: str, image_column: str, label_column: str) -> IterableDataset:
    """Open a data set of labelled images for streaming, the images left as bytes.

    Args:
        name: id on the Hub, or a folder.
        split: for example "train".
        image_column: name of the column of feature `datasets.Image`.
        label_column: name of the column of feature `datasets.ClassLabel`.

    Raises:
        ValueError: if a column is missing or of another type; the message lists the columns there are.
    """
    dataset = load_dataset(name, split=split, streaming=True)
    if dataset.features is None:
        dataset = dataset._resolve_features()
    found = {column: type(feature).__name__ for column, feature in dataset.features.items()}
    for column, kind in ((image_column, Image), (label_column, ClassLabel)):
        if not isinstance(dataset.features.get(column), kind):
            raise ValueError(
                f"{name} has no column {column!r} of type {kind.__name__}; its columns are {found}: "
                "set --image_column or --label_column"
            )
    dataset = dataset.select_columns([image_column, label_column]).cast_column(image_column, Image(decode=False))
    renamed = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return dataset.rename_columns(renamed) if renamed else dataset


def select_classes(names: Sequence[str], chosen: Sequence[str]) -> dict[int, int]:
    """Map the labels of the chosen class names to 0, 1, 2 ... in the order given.

    Raises:
        ValueError: if a name is not one of the data set's, or comes twice.
    """
    if twice := [name for name, count in Counter(chosen).items() if count > 1]:
        raise ValueError(f"class {twice[0]!r} is chosen twice: leave one of them out")
    if unknown := sorted(set(chosen) - set(names)):
        raise ValueError(f"the data set has no class {unknown[0]!r}; its {len(names)} classes begin {list(names[:5])}")
    labels = {name: label for label, name in enumerate(names)}
    return {labels[name]: new_label for new_label, name in enumerate(chosen)}


def image_bytes(image: Mapping[str, Any]) -> bytes:
    """The encoded bytes of a `datasets.Image` that is not decoded: held by the row, or in a local file."""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


class ImageStream(torch.utils.data.IterableDataset):
    """Endless batches of prepared images of one process, for a `DataLoader` with `batch_size=None`.

    Args:
        dataset: from `open_images`.
        label_map: label in the source -> label here; rows of other labels are left out.
        batch_size: images of a batch on one process.
        resolution: side S of the prepared image, in pixels.
        random_flip: whether to mirror half of the images, drawn anew each epoch.
        num_jitters: number of jittered variants that each image has; 0 for the image as it is.
        seed: of the order and of the augmentation.
        rank: index of this process.
        world_size: number of processes.
        start: where to begin.
        window: number of rows that are shuffled together.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        *,
        label_map: dict[int, int],
        batch_size: int,
        resolution: int,
        random_flip: bool = True,
        num_jitters: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: Position = BEGINNING,
        window: int = 2048,
    ) -> None:
        super().__init__()
        self.dataset, self.label_map = dataset, label_map
        self.batch_size, self.resolution = batch_size, resolution
        self.random_flip, self.num_jitters = random_flip, num_jitters
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.start, self.window = start, window
        self._in_memory: dict[int, list[Row]] = {}
        self._bytes_in_memory = 0

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield this process's part of each global batch; worker w of W prepares every W-th one."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        global_batch: list[tuple[Position, Row]] = []
        number = 0
        for position, row in self._endless_rows():
            global_batch.append((position, row))
            if len(global_batch) == self.batch_size * self.world_size:
                if number % stride == first:
                    yield self._prepare(global_batch)
                global_batch = []
                number += 1

    def _endless_rows(self) -> Iterator[tuple[Position, Row]]:
        epoch, skip = self.start
        while True:
            offset = -1
            for offset, row in enumerate(self._epoch_rows(epoch)):
                if offset >= skip:
                    yield Position(epoch, offset), row
            if offset < 0:
                raise ValueError(f"the data set has no row of the {len(self.label_map)} classes asked for")
            epoch, skip = epoch + 1, 0

    def _epoch_rows(self, epoch: int) -> Iterator[Row]:
        """All rows of the classes asked for, once, in an order drawn from (seed, epoch)."""
        rng = np.random.default_rng([self.seed, 0, epoch])
        window: list[Row] = []
        for shard in rng.permutation(self.dataset.num_shards).tolist():
            for row in self._shard_rows(shard):
                window.append(row)
                if len(window) == self.window:
                    yield from (window[i] for i in rng.permutation(len(window)))
                    window = []
        yield from (window[i] for i in rng.permutation(len(window)))

    def _shard_rows(self, shard: int) -> Iterator[Row]:
        if shard in self._in_memory:
            yield from self._in_memory[shard]
            return
        kept: list[Row] = []
        source = self.dataset.shard(num_shards=self.dataset.num_shards, index=shard)
        # `iter` where `__iter__` would split the shard over the workers, each of which follows the whole order here
        examples = (pair for chunk in source.iter(64) for pair in zip(chunk["image"], chunk["label"], strict=True))
        for number, (image, label) in enumerate(examples):
            if label in self.label_map:
                row = Row(shard, number, image_bytes(image), self.label_map[label])
                if self._bytes_in_memory <= IN_MEMORY_BYTES:
                    kept.append(row)
                    self._bytes_in_memory += len(row.image)
                yield row
        if self._bytes_in_memory <= IN_MEMORY_BYTES:
            self._in_memory[shard] = kept

    def _prepare(self, global_batch: list[tuple[Position, Row]]) -> ImageBatch:
        mine = global_batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        augmentations = [self._draw_augmentation(position) for position, _ in mine]
        last = global_batch[-1][0]
        return ImageBatch(
            images=torch.stack([self._load(row, *drawn) for (_, row), drawn in zip(mine, augmentations, strict=True)]),
            class_labels=torch.tensor([row.label for _, row in mine]),
            positions=[position for position, _ in mine],
            identities=[(row.shard, row.row, *drawn) for (_, row), drawn in zip(mine, augmentations, strict=True)],
            next_position=Position(last.epoch, last.offset + 1),
        )

    def _draw_augmentation(self, position: Position) -> tuple[bool, int]:
        rng = np.random.default_rng([self.seed, 1, *position])
        mirrored = bool(self.random_flip and rng.random() < 0.5)
        return mirrored, int(rng.integers(self.num_jitters)) if self.num_jitters else 0

    def _load(self, row: Row, mirrored: bool, variant: int) -> Tensor:
        image = resize_and_crop(decode_image(row.image), self.resolution)
        if self.num_jitters:
            image = jitter(image, np.random.default_rng([self.seed, 4, row.shard, row.row, variant]))
        tensor = image_to_tensor(image)  # (3, S, S)
        return tensor.flip(-1) if mirrored else tensor
