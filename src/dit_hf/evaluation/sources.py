"""Images by the name that a user gives: a file in ADM's form, a folder, or a data set that is streamed."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Image as ImageFeature
from PIL import Image

from ..data.local_folders import SHARDS, choose_split, find_splits
from ..data.names import find_builder
from ..data.preparation import resize_and_crop
from ..data.retries import retried
from ..data.sources import ImageSource, open_images
from ..image_folder import list_images, suffix_of
from ..images import BadImage, decode_image
from .features.adm import npz_batches
from .features.folder import folder_batches
from .features.images import BATCH_SIZE, Batch, check_batch, row_batches


@dataclass(frozen=True)
class SourceOptions:
    """How images are read that exist already.

    Attributes:
        batch_size: Number of images of a batch.
        resolution: Side in pixels to crop images to, as the references of ImageNet were made. None leaves images as
            they are.
        split: Split of a data set.
        image_column: Column of a data set that holds the image.
        label_column: Column of a data set that holds the class; None reads no classes.
    """

    batch_size: int = BATCH_SIZE
    resolution: int | None = None
    split: str = "train"
    image_column: str = "image"
    label_column: str | None = "label"


def open_batches(source: str, options: SourceOptions | None = None) -> Iterable[Batch]:
    """Return the images of an `.npz` in ADM's form, of a folder, or of a data set that is streamed.

    Args:
        source: File, folder, or id on the Hub.
        options: How to read the images. Default: `SourceOptions()`.

    Raises:
        ValueError: If the source cannot be read, or if it is an `.npz` with images of another size than the resolution.
    """
    source, options = os.path.expanduser(source), options or SourceOptions()
    resolution = options.resolution

    def prepare(image: Image.Image) -> Image.Image:
        return image if resolution is None else resize_and_crop(image, resolution)

    if source.endswith(".npz"):
        batches = npz_batches(source, options.batch_size)
        if resolution is not None and (size := check_batch(batches[0])[0].shape[1:3]) != (resolution, resolution):
            raise ValueError(f"{source} holds images of {size}, which are not cropped: leave out {resolution=}")
        return batches
    if Path(source).is_dir() and (folder := _find_images(Path(source), options.split)):
        return folder_batches(folder, options.batch_size, prepare)
    if options.label_column is None:
        rows = _open_images_alone(source, options)
        return row_batches(rows, batch_size=options.batch_size, prepare=prepare, image_column=options.image_column)
    data = open_images(source, options.split, options.image_column, options.label_column)
    return row_batches(_decode_rows(data), batch_size=options.batch_size, prepare=prepare, label_column="label")


def _find_images(folder: Path, split: str) -> Path | None:
    """Return the folder of the images of a split; None if the folder holds the shards of a data set instead.

    Raises:
        ValueError: If the folder has splits, and not the one that is asked for.
    """
    listed = list_images(folder)
    if sum(suffix_of(name) in SHARDS for name in listed.other_names) >= len(listed.names):
        return None
    splits = find_splits(listed)
    return folder / choose_split(listed, splits, split, "--split") if splits else folder


def _open_images_alone(source: str, options: SourceOptions) -> Iterable[Mapping[str, Any]]:
    builder = find_builder(source)
    rows = retried(lambda: builder.as_streaming_dataset(split=options.split), f"the data set {source}")
    features = (rows if rows.features is not None else rows._resolve_features()).features
    column = options.image_column
    if column not in features:
        raise ValueError(
            f"{source} has no column {column!r}; its columns are {', '.join(features)}: set --image-column"
        )
    return rows.select_columns([column]).cast_column(column, ImageFeature(decode=False))


def _decode_rows(data: ImageSource) -> Iterator[Mapping[str, Any]]:
    for part in range(data.num_parts):
        for rows in data.read_part(part):
            for row, label in enumerate(rows.labels):
                try:
                    yield {"image": decode_image(rows.read(row)), "label": label}
                except BadImage as error:
                    raise BadImage(f"{rows.key(row)}: {error}") from error
