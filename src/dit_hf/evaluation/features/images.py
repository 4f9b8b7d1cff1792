"""Where images come from: folders, arrays, streams of rows, as batches of uint8 (B, H, W, 3), with labels perhaps.

Any iterable of such batches can be evaluated. One that can be read by number, `ImageBatches`, lets each of several
processes read its own part only, and a resumed pass skip what it has.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labelled = tuple[NDArray[np.uint8], NDArray[np.integer]]
Batch = NDArray[np.uint8] | Labelled
Prepare = Callable[[Image.Image], Image.Image]

BATCH_SIZE = 64  # ADM's
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageBatches(Sequence[Batch]):
    """Batches that are read when they are asked for.

    Args:
        num_images: of the whole.
        batch_size: of every batch but the last.
        read: gives the images from the first number to before the second, with labels or without.
        source: what tells this set from another, for a pass that is resumed, beside the first batch.
        is_costly: whether batches are drawn when they are asked for: none is then read to tell sets apart.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        read: Callable[[int, int], Batch],
        source: str = "",
        is_costly: bool = False,
    ) -> None:
        self.num_images, self.batch_size, self.read = num_images, batch_size, read
        self.source, self.is_costly = source, is_costly

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self.batch_size
        return self.read(start, min(start + self.batch_size, self.num_images))


def check_batch(batch: Batch) -> tuple[NDArray[np.uint8], NDArray[np.integer] | None]:
    """Split a batch into images and labels.

    Raises:
        ValueError: if the images are not uint8 (B, H, W, 3), or the labels not (B,).
    """
    images, labels = batch if isinstance(batch, tuple) else (batch, None)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images of type {images.dtype} and shape {images.shape}: pass uint8 (B, H, W, 3)")
    if labels is not None and np.shape(labels) != (len(images),):
        raise ValueError(f"labels of shape {np.shape(labels)} for {len(images)} images: pass one per image")
    return images, labels


def array_batches(
    images: NDArray[np.uint8], labels: NDArray[np.integer] | None = None, batch_size: int = BATCH_SIZE
) -> ImageBatches:
    """Batches of images (N, H, W, 3) in memory, or in a memory map.

    Args:
        images: uint8 (N, H, W, 3).
        labels: (N,).
        batch_size: images of a batch.
    """

    def read(start: int, stop: int) -> Batch:
        return images[start:stop] if labels is None else (images[start:stop], labels[start:stop])

    return ImageBatches(len(images), batch_size, read)


def stack_images(images: Sequence[Image.Image], prepare: Prepare | None = None) -> NDArray[np.uint8]:
    """Pictures as one array (B, H, W, 3).

    Raises:
        ValueError: if they differ in size and `prepare` does not make them equal.
    """
    pictures = [picture if prepare is None else prepare(picture) for picture in images]
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(f"images of sizes {sizes[0]} and {sizes[1]}: name a resolution to crop them to")
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def folder_batches(folder: str | Path, batch_size: int = BATCH_SIZE, prepare: Prepare | None = None) -> ImageBatches:
    """The images of a folder in the order of their paths, with the labels that `datasets` would find.

    These are in a `metadata.jsonl`, as `generate` writes it; else the folders within it are classes, in the order of
    their names.

    Args:
        folder: is searched at any depth.
        batch_size: images of a batch.
        prepare: makes images of one size, for example by cropping.

    Raises:
        ValueError: if there is no image, or one without a label among those that have one.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image: these are known by {', '.join(sorted(SUFFIXES))}")
    labels = _folder_labels(root, files)

    def read(start: int, stop: int) -> Batch:
        pictures = []
        for path in files[start:stop]:
            with Image.open(path) as file:
                pictures.append(file.convert("RGB"))
        images = stack_images(pictures, prepare)
        return images if labels is None else (images, np.array(labels[start:stop]))

    listed = [f"{path.relative_to(root)} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in files]
    digest = hashlib.sha256("\n".join([*listed, str(labels)]).encode()).hexdigest()
    return ImageBatches(len(files), batch_size, read, source=f"{root.resolve()}, {len(files)} files, {digest}")


def _folder_labels(root: Path, files: Sequence[Path]) -> list[int] | None:
    names = [path.relative_to(root) for path in files]
    metadata = root / "metadata.jsonl"
    if metadata.is_file():
        rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = {row["file_name"]: row["label"] for row in rows if "label" in row}
        missing = [name.as_posix() for name in names if name.as_posix() not in found]
        if found and missing:
            raise ValueError(
                f"{metadata} has no label for {missing[0]} and {len(missing) - 1} others: add them, or remove the file"
            )
        if found:
            return [int(found[name.as_posix()]) for name in names]
    if any(len(name.parts) == 1 for name in names):
        return None
    classes = {name: label for label, name in enumerate(sorted({name.parts[0] for name in names}))}
    return [classes[name.parts[0]] for name in names]


def row_batches(
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    prepare: Prepare | None = None,
    image_column: str = "image",
    label_column: str | None = None,
) -> Iterator[Batch]:
    """Batches of the rows of a stream, such as one of `datasets`, whose images are decoded.

    Args:
        rows: mappings that hold a PIL image.
        batch_size: images of a batch.
        prepare: makes images of one size, for example by cropping.
        image_column: where a row holds its image.
        label_column: where a row holds its class; None reads no labels.
    """
    pictures: list[Image.Image] = []
    labels: list[int] = []

    def take() -> Batch:
        images = stack_images(pictures, prepare)
        return images if label_column is None else (images, np.array(labels))

    for row in rows:
        pictures.append(row[image_column])
        if label_column is not None:
            labels.append(int(row[label_column]))
        if len(pictures) == batch_size:
            yield take()
            pictures.clear()
            labels.clear()
    if pictures:
        yield take()
