"""Features on the disk while a pass runs, so that the same call goes on where a killed one stopped.

A pass computes chunks of some batches each and writes every chunk to a file of its own, `features-NUMBER.npz`, named by
the number of its first batch. Which batches a chunk holds depends on the clock and the processes; each batch is in one.

Legend: B images of a chunk, D features of a tap.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import write_text, written_whole
from .images import Batch, ImageBatches, check_batch


@dataclass
class Chunk:
    """The features of some batches.

    Attributes:
        batches: Numbers of the batches.
        index: Numbers of the images (B,).
        labels: Class of each image (B,), or None if the images have no labels.
        outputs: Features (B, D) by tap.
        image_sizes: Height and width of the images, each size once (S, 2).
    """

    batches: NDArray[np.int64]
    index: NDArray[np.int64]
    labels: NDArray[np.integer] | None
    outputs: dict[str, NDArray[np.float32]]
    image_sizes: NDArray[np.int64]


def join_labels(parts: list[NDArray[np.integer] | None]) -> NDArray[np.integer] | None:
    """Return the labels of all parts, or None if no part has any.

    Raises:
        ValueError: If some parts have labels and some have none.
    """
    labelled = [part for part in parts if part is not None]
    if labelled and len(labelled) < len(parts):
        raise ValueError("some batches have labels and some have none: give all of them labels, or none")
    return np.concatenate(labelled) if labelled else None


def join_chunks(parts: list[Chunk]) -> Chunk:
    """Return one chunk that holds all."""
    return Chunk(
        np.concatenate([part.batches for part in parts]),
        np.concatenate([part.index for part in parts]),
        join_labels([part.labels for part in parts]),
        {tap: np.concatenate([part.outputs[tap] for part in parts]) for tap in parts[0].outputs},
        np.unique(np.concatenate([part.image_sizes for part in parts]), axis=0),
    )


FORM = 2  # of the files; a folder of another form is refused


class WorkFolder:
    """Chunks of one pass, and `settings.json`, which tells the pass from others.

    Args:
        folder: Folder that is made if it is missing.
        identity: All that the features depend on, as JSON can hold it.

    Raises:
        ValueError: If the folder holds features of other images or of another extractor.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings, text = (
            self.folder / "settings.json",
            json.dumps({"form": FORM, **identity}, indent=2, sort_keys=True, default=str),
        )
        if not settings.exists():
            write_text(settings, text)
        elif settings.read_text(encoding="utf-8") != text:
            raise ValueError(f"{folder} holds a pass over other images or with other settings: name another folder")
        self._files = sorted(self.folder.glob("features-*.npz"))  # those of earlier runs

    def write(self, chunk: Chunk) -> None:
        """Write a chunk to a file of its own."""
        arrays: dict[str, Any] = {"batches": chunk.batches, "index": chunk.index, **chunk.outputs}
        arrays["image_sizes"] = chunk.image_sizes
        if chunk.labels is not None:
            arrays["labels"] = chunk.labels
        path = self.folder / f"features-{chunk.batches[0]:08d}.npz"
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def finished_batches(self) -> set[int]:
        """Return the numbers of the batches that earlier runs finished."""
        numbers: set[int] = set()
        for path in self._files:
            with np.load(path) as arrays:
                numbers.update(arrays["batches"].tolist())
        return numbers

    def read_share(self, rank: int, world_size: int, taps: Iterable[str]) -> Iterator[Chunk]:
        """Yield the chunks of earlier runs that belong to one process.

        Args:
            rank: Number of the process.
            world_size: Number of processes.
            taps: Names of the outputs to read.
        """
        for path in self._files[rank::world_size]:
            with np.load(path) as arrays:
                labels = arrays["labels"] if "labels" in arrays else None
                outputs = {tap: arrays[tap] for tap in taps}
                yield Chunk(arrays["batches"], arrays["index"], labels, outputs, arrays["image_sizes"])


def identify_images(images: Iterable[Batch]) -> tuple[Iterable[Batch], dict[str, Any]]:
    """Return the images, and what tells them from others: their source, and the pixels of their first batch."""
    if isinstance(images, ImageBatches):
        identity: dict[str, Any] = {"batch_size": images.batch_size, "source": images.source}
        first: Batch | None = images[0] if len(images) and not images.is_costly else None
    else:
        iterator, identity = iter(images), {}
        first = next(iterator, None)
        images = iterator if first is None else itertools.chain([first], iterator)
    if first is not None:
        pixels, _ = check_batch(first)
        identity["first_batch"] = hashlib.sha256(pixels.tobytes()).hexdigest()
        identity["first_batch_shape"] = list(pixels.shape)
    return images, identity
