"""Images from arrays, folders and streams of rows, as batches of uint8 (B, H, W, 3), with or without labels (B,).

Any iterable of such batches can be evaluated. `ImageBatches` can be read by number besides: each process then reads its
own batches only, and a pass that goes on after a kill skips the batches it has.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
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
        num_images: Number of images of the whole.
        batch_size: Number of images of each batch; the last may have fewer.
        read: Function from `start, stop` to the images start..stop - 1, with or without labels.
        source: Text that differs from that of any other set of images. A pass that goes on after a kill compares it.
        is_costly: Whether a model draws the batches when they are asked for. A pass that goes on then compares `source`
            only; else it also reads the first batch and compares its pixels.
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
        ValueError: If the images are not uint8 (B, H, W, 3), or if the labels are not (B,).
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
    """Return the batches of images in memory, or in a memory map.

    Args:
        images: Images uint8 (N, H, W, 3).
        labels: Class of each image (N,).
        batch_size: Number of images of a batch.
    """

    def read(start: int, stop: int) -> Batch:
        return images[start:stop] if labels is None else (images[start:stop], labels[start:stop])

    return ImageBatches(len(images), batch_size, read)


def stack_images(images: Sequence[Image.Image], prepare: Prepare | None = None) -> NDArray[np.uint8]:
    """Return images as one array (B, H, W, 3).

    Args:
        images: Images of Pillow.
        prepare: Function that makes images of one size, for example by cropping.

    Raises:
        ValueError: If the images differ in size and `prepare` does not make them equal.
    """
    prepared = [image if prepare is None else prepare(image) for image in images]
    sizes = sorted({image.size for image in prepared})
    if len(sizes) > 1:
        raise ValueError(f"images of sizes {sizes[0]} and {sizes[1]}: name a resolution to crop them to")
    return np.stack([np.asarray(image.convert("RGB")) for image in prepared])


def folder_batches(folder: str | Path, batch_size: int = BATCH_SIZE, prepare: Prepare | None = None) -> ImageBatches:
    """Return the images of a folder in the order of their paths, with the labels that `datasets` would find.

    The labels are in `metadata.jsonl`, as `generate` writes it. Without that file, the folders within are the classes,
    numbered in the order of their names.

    Args:
        folder: Folder that is searched at any depth.
        batch_size: Number of images of a batch.
        prepare: Function that makes images of one size, for example by cropping.

    Raises:
        ValueError: If there is no image, or if some images have a label and some have none.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image: these are known by {', '.join(sorted(SUFFIXES))}")
    labels = _folder_labels(root, files)

    def read(start: int, stop: int) -> Batch:
        opened = []
        for path in files[start:stop]:
            with Image.open(path) as file:
                opened.append(file.convert("RGB"))
        images = stack_images(opened, prepare)
        return images if labels is None else (images, np.array(labels[start:stop]))

    listed = [f"{path.relative_to(root)} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in files]
    digest = hashlib.sha256("\n".join([*listed, str(labels)]).encode()).hexdigest()
    return ImageBatches(len(files), batch_size, read, source=f"{root.resolve()}, {len(files)} files, {digest}")


def _folder_labels(root: Path, files: Sequence[Path]) -> list[int] | None:
    names = [path.relative_to(root) for path in files]
    metadata = root / "metadata.jsonl"
    if metadata.is_file():
        rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
        labels = {row["file_name"]: row["label"] for row in rows if "label" in row}
        missing = [name.as_posix() for name in names if name.as_posix() not in labels]
        if labels and missing:
            raise ValueError(
                f"{metadata} has no label for {missing[0]} and {len(missing) - 1} others: add them, or remove the file"
            )
        if labels:
            return [int(labels[name.as_posix()]) for name in names]
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
    """Yield the batches of a stream of rows, such as a data set of `datasets`, whose images are decoded.

    Args:
        rows: Mappings that hold an image of Pillow each.
        batch_size: Number of images of a batch.
        prepare: Function that makes images of one size, for example by cropping.
        image_column: Key of the image.
        label_column: Key of the class; None reads no labels.
    """
    rows = iter(rows)
    while held := list(islice(rows, batch_size)):
        images = stack_images([row[image_column] for row in held], prepare)
        yield images if label_column is None else (images, np.array([int(row[label_column]) for row in held]))
