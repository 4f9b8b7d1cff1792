"""One pass over images, by any number of processes, that gives the features all metrics need.

Each process computes the features of its share of the batches. At the end the processes exchange what they have, and
each returns the features of the whole set.

Legend: B images of a batch, N of the set, D features of a tap.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from ...distributed import start_inference_accelerator
from ..comparability import warn_of_missing_classes
from ..metrics.inception_score import SPLIT_SIZE, InceptionScoreSums, softmax
from .extractors import LOGITS, POOL, SPATIAL, Extractor
from .features import Features, GroupStatistics
from .groups import RandomGroups
from .images import Batch, ImageBatches, check_batch
from .statistics import GaussianStatistics
from .work_folder import Chunk, WorkFolder, identify_images, join_chunks, join_labels

GAUSSIAN_TAPS = (POOL, SPATIAL)
CHUNK_SECONDS = 60.0  # a chunk is closed after this time, however slowly images come: a kill loses no more
CHUNK = 1024  # images of a chunk, which enter the statistics and are written together: 20 MB with Inception


class NumberedBatch(NamedTuple):
    """A batch, its number, and the number of its first image."""

    number: int
    first: int
    batch: Batch


@dataclass
class _FeatureAccumulator:
    """What one process has of a pass."""

    groups: list[GroupStatistics]
    group_of: RandomGroups
    split_order: NDArray[np.int64] | None  # position of each image for the splits of the Inception score
    keeps_rows: bool
    index: list[NDArray[np.int64]] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[NDArray[np.integer] | None] = field(default_factory=list)
    image_sizes: set[tuple[int, int]] = field(default_factory=set)

    def add(self, chunk: Chunk) -> None:
        groups = self.group_of(chunk.index)
        position = chunk.index if self.split_order is None else self.split_order[chunk.index]
        for number, group in enumerate(self.groups):
            in_group = groups == number
            for tap, gaussian in group.gaussians.items():
                gaussian.update(chunk.outputs[tap][in_group])
            if group.scores is not None:
                group.scores.update(softmax(chunk.outputs[LOGITS][in_group]), position[in_group])
        self.index.append(chunk.index)
        self.labels.append(chunk.labels)
        self.image_sizes |= {(height, width) for height, width in chunk.image_sizes.tolist()}
        if self.keeps_rows:
            self.rows.append(chunk.outputs[POOL])

    def merge(self, other: "_FeatureAccumulator") -> None:
        for group, group_of_other in zip(self.groups, other.groups, strict=True):
            group.merge(group_of_other)
        self.index += other.index
        self.rows += other.rows
        self.labels += other.labels
        self.image_sizes |= other.image_sizes

    def features(self, extractor: dict[str, Any], class_names: Sequence[str] | None) -> Features:
        """Return the features in the order of the images."""
        if not self.index:
            raise ValueError("there are no images")
        index = np.concatenate(self.index)
        order = np.argsort(index)
        assert (index[order] == np.arange(len(index))).all(), "every image belongs to one process"
        index, labels = index[order], join_labels(self.labels)
        return Features(
            extractor,
            self.groups,
            index,
            self.group_of(index),
            np.concatenate(self.rows)[order] if self.keeps_rows else None,
            None if labels is None else labels[order],
            class_names,
            sorted(self.image_sizes),
        )


def _empty_group(extractor: Extractor, split_size: int) -> GroupStatistics:
    gaussians = {tap: GaussianStatistics.empty(extractor.taps[tap]) for tap in GAUSSIAN_TAPS if tap in extractor.taps}
    return GroupStatistics(gaussians, InceptionScoreSums(split_size) if LOGITS in extractor.taps else None)


def check_num_images(images: Iterable[Batch], num_images: int | None) -> int | None:
    """Return the number of images that there are, if it is known.

    Args:
        images: Batches of images.
        num_images: Number of images to take, or None.

    Raises:
        ValueError: If there are fewer images than `num_images`.
    """
    num_available = images.num_images if isinstance(images, ImageBatches) else None
    if num_images is not None and (num_images < 1 or (num_available is not None and num_images > num_available)):
        raise ValueError(f"num_images={num_images} is outside 1..{num_available or 'the number of images'}")
    return num_available


def extract(
    images: Iterable[Batch],
    extractor: Extractor,
    *,
    num_images: int | None = None,
    keep_rows: bool = True,
    num_groups: int = 1,
    split_size: int = SPLIT_SIZE,
    split_seed: int | None = None,
    work_dir: str | Path | None = None,
) -> Features:
    """Pass over images once. Every process of a launcher calls this function and gets the features of the whole set.

    Args:
        images: Batches of uint8 (B, H, W, 3), or pairs of such a batch and its labels (B,). Each process reads only its
            own batches of `ImageBatches`; any other iterable must give all processes the same batches.
        extractor: Network that gives the features.
        num_images: Number of images to take from the beginning; None takes all.
        keep_rows: Whether to keep each image's features, which precision, recall and other metrics need.
        num_groups: Number of random groups that can be left out, which shows how far the metrics vary.
        split_size: Number of images of a split of the Inception score.
        split_seed: Seed of a permutation of the images for these splits. None splits the images in their order.
        work_dir: Folder that keeps the features, about 20 kB an image, so that the same call goes on after a kill.

    Raises:
        ValueError: If there are fewer images than `num_images` or `num_groups`, if they have another form, or if
            `work_dir` holds the features of another pass.
    """
    num_available = check_num_images(images, num_images)
    if num_images is not None and isinstance(images, ImageBatches) and images.labels is not None:
        warn_of_missing_classes(images.labels, num_images)
    accelerator = start_inference_accelerator()
    rank, world_size = accelerator.process_index, accelerator.num_processes
    identity = {"name": extractor.name, **extractor.settings}
    total, class_names = num_images or num_available, getattr(images, "class_names", None)
    if num_groups < 1 or (total is not None and num_groups > total):
        raise ValueError(f"num_groups={num_groups} is outside 1..{total or 'the number of images'}")
    accumulator = _FeatureAccumulator(
        [_empty_group(extractor, split_size) for _ in range(num_groups)],
        RandomGroups(num_groups, total),
        _permute_for_splits(split_seed, total),
        keep_rows,
    )
    folder, finished = None, set()
    if work_dir is not None:
        images, image_identity = identify_images(images)
        folder = WorkFolder(work_dir, {"extractor": identity, "num_images": num_images, **image_identity})
        finished = folder.finished_batches()
        for chunk in folder.read_share(rank, world_size, extractor.taps):
            accumulator.add(chunk)
        accelerator.wait_for_everyone()  # no process writes before all have listed the files
    batches = _own_batches(images, finished, num_images, rank, world_size)
    with tqdm(total=total, unit="image", desc=extractor.name, disable=not accelerator.is_main_process) as bar:
        bar.update(sum(map(len, accumulator.index)) * world_size)
        for chunk in _compute_chunks(_show_progress(batches, bar, world_size), extractor, num_images):
            if folder is not None:
                folder.write(chunk)
            accumulator.add(chunk)
    return _gather(accumulator, num_images).features(identity, class_names)


def _permute_for_splits(seed: int | None, num_images: int | None) -> NDArray[np.int64] | None:
    if seed is None:
        return None
    if num_images is None:
        raise ValueError(
            f"the images cannot be permuted by the seed {seed}, because their number is not known: give num_images"
        )
    return np.random.default_rng(seed).permutation(num_images)


def _own_batches(
    images: Iterable[Batch], finished: set[int], num_images: int | None, rank: int, world_size: int
) -> Iterator[NumberedBatch]:
    """Yield the batches that this process has to compute."""
    if isinstance(images, ImageBatches):
        num_batches = len(images) if num_images is None else -(-num_images // images.batch_size)
        missing = [number for number in range(num_batches) if number not in finished]
        for number in missing[rank::world_size]:
            yield NumberedBatch(number, number * images.batch_size, images[number])
        return
    first = num_missing = 0
    for number, batch in enumerate(images):
        if number not in finished:
            if num_missing % world_size == rank:
                yield NumberedBatch(number, first, batch)
            num_missing += 1
        first += len(check_batch(batch)[0])
        if num_images is not None and first >= num_images:
            return


def _show_progress(batches: Iterator[NumberedBatch], bar: tqdm, world_size: int) -> Iterator[NumberedBatch]:
    for batch in batches:
        yield batch
        bar.update(len(check_batch(batch.batch)[0]) * world_size)  # the other processes are about as far


def _compute_chunks(batches: Iterator[NumberedBatch], extractor: Extractor, num_images: int | None) -> Iterator[Chunk]:
    """Compute features, and yield them when there are CHUNK images or CHUNK_SECONDS are over."""
    parts: list[Chunk] = []
    began = time.monotonic()
    for batch in batches:
        parts.append(_compute_batch(batch, extractor, num_images))
        if sum(len(part.index) for part in parts) >= CHUNK or time.monotonic() - began >= CHUNK_SECONDS:
            yield join_chunks(parts)
            parts, began = [], time.monotonic()
    if parts:
        yield join_chunks(parts)


def _compute_batch(batch: NumberedBatch, extractor: Extractor, num_images: int | None) -> Chunk:
    images, labels = check_batch(batch.batch)
    images = images[: None if num_images is None else num_images - batch.first]
    outputs = {tap: value.cpu().numpy() for tap, value in extractor(torch.from_numpy(images.copy())).items()}
    index = batch.first + np.arange(len(images))
    labels = None if labels is None else labels[: len(images)]
    return Chunk(np.array([batch.number]), index, labels, outputs, np.array([images.shape[1:3]]))


def _gather(accumulator: _FeatureAccumulator, num_images: int | None) -> _FeatureAccumulator:
    """Return, on every process, what all processes have together."""
    whole, *remaining = gather_object([accumulator])
    for part in remaining:
        whole.merge(part)
    num = sum(map(len, whole.index))
    if num and num_images is not None and num < num_images:
        raise ValueError(f"there are {num} images, num_images={num_images} were asked for")
    return whole
