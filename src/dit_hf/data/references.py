"""Reference images of each class, for comparing samples with the drawings they were learned from."""

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
    """All images of some classes, each with its mirror image and jittered variants of both.

    Args:
        name: data set, an id on the Hub or a folder.
        class_names: the classes, in the order of the first dimension of the result.
        resolution: side S, in pixels.
        num_jitters: jittered variants of each image, beside the image itself.
        seed: of the jitter.
        split: for example "train".
        image_column: name of the column of images.
        label_column: name of the column of labels.

    Returns:
        uint8 (K, M, S, S, 3), where M = images of a class x 2 x (1 + num_jitters).

    Raises:
        ValueError: if a class has no image, or not as many as the others.
    """
    source = open_images(name, split, image_column, label_column, class_names=class_names)
    drawings: list[list[NDArray[np.uint8]]] = [[] for _ in class_names]
    rng = np.random.default_rng(seed)
    for rows in (rows for part in range(source.num_parts) for rows in source.read_part(part)):
        for row, label in enumerate(rows.labels):
            image = resize_and_crop(decode_image(rows.read(row)), resolution)
            variants = [image, *(jitter(image, rng) for _ in range(num_jitters))]
            both_ways = [*variants, *(ImageOps.mirror(variant) for variant in variants)]
            drawings[label] += [np.array(variant) for variant in both_ways]
    counts = {class_name: len(each) for class_name, each in zip(class_names, drawings, strict=True)}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"the classes need the same number of images, at least one; they have {counts}")
    return np.array(drawings)
