"""Reference images of each class, to compare samples with the images that a model was trained on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from ..images import decode_image
from .preparation import jitter, resize_and_crop
from .sources import open_images


def load_references(
    name: str,
    class_names: Sequence[str],
    *,
    resolution: int,
    num_jitters: int = 8,
    seed: int = 0,
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
) -> NDArray[np.uint8]:
    """Load all images of some classes, each with its mirror image and with jittered variants of both.

    Args:
        name: Data set: an id on the Hub, or a folder.
        class_names: Names of the classes, in the order of the first dimension of the result.
        resolution: Side S of the images, in pixels.
        num_jitters: Number of jittered variants of each image, beside the image itself.
        seed: Seed of the jitter.
        split: Split of the data set, such as "train".
        image_column: Column that holds the images.
        label_column: Column that holds the classes.

    Returns:
        Images as uint8, (K, M, S, S, 3), where M = number of images of a class x 2 x (1 + num_jitters).

    Raises:
        ValueError: If a class has no image, or another number of images than the other classes.
    """
    source = open_images(name, split, image_column, label_column, class_names=class_names)
    images: list[list[NDArray[np.uint8]]] = [[] for _ in class_names]
    rng = np.random.default_rng(seed)
    for rows in (rows for part in range(source.num_parts) for rows in source.read_part(part)):
        for row, label in enumerate(rows.labels):
            image = resize_and_crop(decode_image(rows.read(row)), resolution)
            variants = [image, *(jitter(image, rng) for _ in range(num_jitters))]
            both_ways = [*variants, *(ImageOps.mirror(variant) for variant in variants)]
            images[label] += [np.array(variant) for variant in both_ways]
    counts = {class_name: len(each) for class_name, each in zip(class_names, images, strict=True)}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"the classes need the same number of images, at least one; they have {counts}")
    return np.array(images)
