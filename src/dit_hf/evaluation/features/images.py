"""Images from arrays and streams of rows, as batches of uint8 (B, H, W, 3), with or without labels (B,).

Any iterable of such batches can be evaluated. `ImageBatches` can be read by number besides: each process then reads its
own batches only, and a pass that goes on after a kill skips the batches it has.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...images import BadImage, decode_image, read_image, to_rgb

Labelled = tuple[NDArray[np.uint8], NDArray[np.integer]]
Batch = NDArray[np.uint8] | Labelled
Prepare = Callable[[Image.Image], Image.Image]

BATCH_SIZE = 64  # ADM's


class ImageBatches(Sequence[Batch]):
    """Batches that are read when they are asked for.

    Args:
        num_images: Number of images of the whole.
        batch_size: Number of images of each batch; the last may have fewer.
        read: Function from `start, stop` to the images start..stop - 1, with or without labels.
        source: Text that differs from that of any other set of images. A pass that goes on after a kill compares it.
        labels: Class of each image (N,), if it is known before the images are read. `read` gives the labels as well.
        class_names: Name of each class, if the classes have names.
        is_costly: Whether a model draws the batches when they are asked for. A pass that goes on then compares `source`
            only; else it also reads the first batch and compares its pixels.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        read: Callable[[int, int], Batch],
        source: str = "",
        *,
        labels: NDArray[np.integer] | None = None,
        class_names: Sequence[str] | None = None,
        is_costly: bool = False,
    ) -> None:
        self.num_images, self.batch_size, self.read = num_images, batch_size, read
        self.source, self.labels, self.class_names, self.is_costly = source, labels, class_names, is_costly

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

    return ImageBatches(len(images), batch_size, read, labels=labels)


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


def row_batches(
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    prepare: Prepare | None = None,
    image_column: str = "image",
    label_column: str | None = None,
) -> Iterator[Batch]:
    """Yield the batches of a stream of rows, such as a data set of `datasets`.

    Args:
        rows: Mappings that hold an image each: an image of Pillow, the bytes of an image file, or both a path and bytes
            as `datasets.Image(decode=False)` gives them.
        batch_size: Number of images of a batch.
        prepare: Function that makes images of one size, for example by cropping.
        image_column: Key of the image.
        label_column: Key of the class; None reads no labels.

    Raises:
        ValueError: If an image cannot be decoded, or a label is no whole number from 0 on; the message names the row.
    """
    numbered = enumerate(rows)
    while held := list(islice(numbered, batch_size)):
        images = stack_images([_open_value(row[image_column], number) for number, row in held], prepare)
        if label_column is None:
            yield images
        else:
            yield images, np.array([_check_label(row[label_column], number) for number, row in held])


def _open_value(value: Any, number: int) -> Image.Image:
    """Return the image of a row as an upright RGB image."""
    data, path = (value["bytes"], value["path"]) if isinstance(value, Mapping) else (value, None)
    try:
        if data is None and path is not None:
            return read_image(path)
        return decode_image(data) if isinstance(data, bytes) else to_rgb(data)
    except BadImage as error:
        raise BadImage(f"row {number}: {error}") from error


def _check_label(label: Any, number: int) -> int:
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0:
        raise ValueError(f"row {number}: label {label!r} is no whole number from 0 on: mend it, or read no labels")
    return int(label)
