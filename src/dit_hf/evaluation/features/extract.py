"""One pass over images: features, and what the metrics need of them, over any number of processes, resumable.

Statistics and the sums of the Inception score grow in place, so their memory does not depend on the number of images.
Only precision, recall and their kin need the features of each image; those are kept as rows.

Legend: B images of a batch, N of the set, D features of a tap.
"""

import copy
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from ...files import write_text, written_whole
from ...generation.generate import start_inference_accelerator
from ..metrics.inception_score import SPLIT_SIZE, InceptionScoreSums, softmax
from .extractors import Extractor
from .images import Batch, ImageBatches, check_batch
from .statistics import GaussianStatistics, Moments

POOL, SPATIAL, LOGITS = "pool", "spatial", "logits"
GAUSSIAN_TAPS = (POOL, SPATIAL)
CHUNK_SECONDS = 60.0  # at most, however slowly images come
CHUNK = 1024  # images whose features enter the statistics together, and are written together: 20 MB with Inception


@dataclass
class Group:
    """Statistics of a part of the images."""

    gaussians: dict[str, GaussianStatistics]  # by tap
    scores: InceptionScoreSums | None

    def merge(self, other: "Group") -> None:
        for tap, gaussian in self.gaussians.items():
            gaussian.merge(other.gaussians[tap])
        if self.scores is not None and other.scores is not None:
            self.scores.merge(other.scores)


@dataclass
class Features:
    """What a pass leaves.

    Image k belongs to group k modulo the number of groups: leaving out one group after another tells how far the
    metrics vary.
    """

    extractor: dict[str, Any]  # its name, and all that changes its numbers
    groups: list[Group]
    index: NDArray[np.int64]  # (N,) the numbers of the images
    rows: NDArray[np.float32] | None  # (N, D) of the tap "pool", where they were kept
    labels: NDArray[np.integer] | None  # (N,)

    @property
    def num_images(self) -> int:
        return len(self.index)

    def total(self) -> Group:
        """Statistics of all groups."""
        first, *others = self.groups
        whole = copy.deepcopy(first) if others else first
        for other in others:
            whole.merge(other)
        return whole

    def moments(self) -> dict[str, Moments]:
        """Mean and covariance of each tap that has them."""
        return {tap: gaussian.moments() for tap, gaussian in self.total().gaussians.items()}

    def without_group(self, number: int) -> "Features":
        """The features of all images but those of one group."""
        stays = self.index % len(self.groups) != number
        groups = [group for other, group in enumerate(self.groups) if other != number]
        rows, labels = (None if array is None else array[stays] for array in (self.rows, self.labels))
        return Features(self.extractor, groups, self.index[stays], rows, labels)


@dataclass
class _Chunk:
    """The features of some batches."""

    batches: NDArray[np.int64]  # their numbers
    index: NDArray[np.int64]  # (B,) the numbers of the images
    labels: NDArray[np.integer] | None  # (B,)
    outputs: dict[str, NDArray[np.float32]]  # by tap (B, D)


class FeatureFolder:
    """Where features are kept while a pass runs, so that the same call goes on where a killed one stopped.

    Raises:
        ValueError: if the folder holds features of other images, or of another extractor.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings, text = self.folder / "settings.json", json.dumps(identity, indent=2, sort_keys=True, default=str)
        if not settings.exists():
            write_text(settings, text)
        elif settings.read_text(encoding="utf-8") != text:
            raise ValueError(f"{folder} holds a pass over other images or with other settings: name another folder")
        self.files = sorted(self.folder.glob("features-*.npz"))

    def write(self, chunk: _Chunk) -> None:
        arrays: dict[str, Any] = {"batches": chunk.batches, "index": chunk.index, **chunk.outputs}
        if chunk.labels is not None:
            arrays["labels"] = chunk.labels
        path = self.folder / f"features-{chunk.batches[0]:08d}.npz"
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def done(self) -> set[int]:
        """The numbers of the batches whose features are here."""
        numbers: set[int] = set()
        for path in self.files:
            with np.load(path) as arrays:
                numbers.update(arrays["batches"].tolist())
        return numbers

    def read(self, path: Path, taps: Iterable[str]) -> _Chunk:
        with np.load(path) as arrays:
            labels = arrays["labels"] if "labels" in arrays else None
            return _Chunk(arrays["batches"], arrays["index"], labels, {tap: arrays[tap] for tap in taps})


@dataclass
class _Share:
    """What one process has of a pass."""

    groups: list[Group]
    keeps_rows: bool
    index: list[NDArray[np.int64]] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[NDArray[np.integer] | None] = field(default_factory=list)

    def add(self, chunk: _Chunk) -> None:
        for number, group in enumerate(self.groups):
            mine = chunk.index % len(self.groups) == number
            for tap, gaussian in group.gaussians.items():
                gaussian.update(chunk.outputs[tap][mine])
            if group.scores is not None:
                group.scores.update(softmax(chunk.outputs[LOGITS][mine]), chunk.index[mine])
        self.index.append(chunk.index)
        self.labels.append(chunk.labels)
        if self.keeps_rows:
            self.rows.append(chunk.outputs[POOL])


def _own_batches(
    images: Iterable[Batch], done: set[int], num_images: int | None, rank: int, world: int
) -> Iterator[tuple[int, int, Batch]]:
    """Yield the number, the first image's number and the images of each batch that this process has to compute."""
    if isinstance(images, ImageBatches):
        last = len(images) if num_images is None else -(-num_images // images.batch_size)
        for number in [number for number in range(last) if number not in done][rank::world]:
            yield number, number * images.batch_size, images[number]
        return
    first = position = 0
    for number, batch in enumerate(images):
        size = len(batch[0]) if isinstance(batch, tuple) else len(batch)
        if number not in done:
            if position % world == rank:
                yield number, first, batch
            position += 1
        first += size
        if num_images is not None and first >= num_images:
            return


def _chunks(
    batches: Iterator[tuple[int, int, Batch]], extractor: Extractor, num_images: int | None
) -> Iterator[_Chunk]:
    """Compute features, and yield them CHUNK images at a time."""
    parts: list[_Chunk] = []
    began = time.monotonic()
    for number, first, batch in batches:
        images, labels = check_batch(batch)
        images = images[: None if num_images is None else num_images - first]
        outputs = {tap: value.cpu().numpy() for tap, value in extractor(torch.from_numpy(images.copy())).items()}
        index = first + np.arange(len(images))
        parts.append(_Chunk(np.array([number]), index, None if labels is None else labels[: len(images)], outputs))
        if sum(len(part.index) for part in parts) >= CHUNK or time.monotonic() - began >= CHUNK_SECONDS:
            yield _join(parts)
            parts, began = [], time.monotonic()
    if parts:
        yield _join(parts)


def _join(parts: list[_Chunk]) -> _Chunk:
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        raise ValueError("some batches have labels and some have none: give all of them labels, or none")
    return _Chunk(
        np.concatenate([part.batches for part in parts]),
        np.concatenate([part.index for part in parts]),
        np.concatenate(labels) if labels else None,
        {tap: np.concatenate([part.outputs[tap] for part in parts]) for tap in parts[0].outputs},
    )


def extract(
    images: Iterable[Batch],
    extractor: Extractor,
    *,
    num_images: int | None = None,
    keep_rows: bool = True,
    num_groups: int = 1,
    split_size: int = SPLIT_SIZE,
    work_dir: str | Path | None = None,
) -> Features:
    """Pass over images once; every process of a launcher calls this, each computes its share, and all get the whole.

    Args:
        images: batches of uint8 (B, H, W, 3), or of pairs of such and labels (B,). `ImageBatches` are read by their
            numbers, each process reads its own; any other iterable must give all processes the same.
        extractor: gives the features.
        num_images: how many to take; None is all.
        keep_rows: whether to keep each image's features, which precision, recall and their kin need.
        num_groups: parts that can be left out, to tell how far the metrics vary.
        split_size: images of a split of the Inception score.
        work_dir: keeps the features on the way, so that the same call goes on after a kill; about 20 kB an image.

    Raises:
        ValueError: if there are fewer images than wanted, or in another form, or `work_dir` holds another pass.
    """
    available = images.num_images if isinstance(images, ImageBatches) else None
    if num_images is not None and (num_images < 1 or (available is not None and num_images > available)):
        raise ValueError(f"num_images={num_images} is outside 1..{available or 'the number of images'}")
    state = start_inference_accelerator()
    about = {"name": extractor.name, **extractor.settings}
    share = _Share([_empty_group(extractor, split_size) for _ in range(num_groups)], keep_rows)
    folder, done = None, set()
    if work_dir is not None:
        images, which = _identify(images)
        folder = FeatureFolder(work_dir, {"extractor": about, "num_images": num_images, **which})
        done = folder.done()
        for path in folder.files[state.process_index :: state.num_processes]:
            share.add(folder.read(path, extractor.taps))
        state.wait_for_everyone()  # before anyone writes
    batches = _own_batches(images, done, num_images, state.process_index, state.num_processes)
    with tqdm(
        total=num_images or available, unit="image", desc=extractor.name, disable=not state.is_main_process
    ) as bar:
        bar.update(sum(map(len, share.index)) * state.num_processes)

        def watched() -> Iterator[tuple[int, int, Batch]]:
            for number, first, batch in batches:
                yield number, first, batch
                bar.update(len(check_batch(batch)[0]) * state.num_processes)  # the others are about as far

        for chunk in _chunks(watched(), extractor, num_images):
            if folder is not None:
                folder.write(chunk)
            share.add(chunk)
    return _gather(share, about, num_images)


def _identify(images: Iterable[Batch]) -> tuple[Iterable[Batch], dict[str, Any]]:
    """The images, and what tells them from others: where they come from, and the pixels of their first batch."""
    first: Batch | None
    if isinstance(images, ImageBatches):
        which: dict[str, Any] = {"batch_size": images.batch_size, "source": images.source}
        first = images[0] if len(images) and not images.is_costly else None
    else:
        rest, which = iter(images), {}
        first = next(rest, None)
        images = rest if first is None else itertools.chain([first], rest)
    if first is not None:
        pixels, _ = check_batch(first)
        which["first_batch"] = hashlib.sha256(pixels.tobytes()).hexdigest()
        which["first_batch_shape"] = list(pixels.shape)
    return images, which


def _empty_group(extractor: Extractor, split_size: int) -> Group:
    gaussians = {tap: GaussianStatistics.empty(extractor.taps[tap]) for tap in GAUSSIAN_TAPS if tap in extractor.taps}
    return Group(gaussians, InceptionScoreSums(split_size) if LOGITS in extractor.taps else None)


def _gather(share: _Share, about: dict[str, Any], num_images: int | None) -> Features:
    """Put the shares of all processes together, on every process."""
    first, *others = gather_object([share])
    for other in others:
        for group, theirs in zip(first.groups, other.groups, strict=True):
            group.merge(theirs)
        first.index, first.rows, first.labels = (
            first.index + other.index,
            first.rows + other.rows,
            first.labels + other.labels,
        )
    if not first.index:
        raise ValueError("there are no images")
    index = np.concatenate(first.index)
    if num_images is not None and len(index) < num_images:
        raise ValueError(f"there are {len(index)} images, num_images={num_images} were asked for")
    order = np.argsort(index)
    assert (index[order] == np.arange(len(index))).all(), "every image belongs to one process"
    labels = None if first.labels[0] is None else np.concatenate(first.labels)[order]
    rows = np.concatenate(first.rows)[order] if first.keeps_rows else None
    return Features(about, first.groups, index[order], rows, labels)
